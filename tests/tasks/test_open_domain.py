"""The open-domain pack: rows shaped like NaturalQuestions', TriviaQA's, WebQuestions' and HotpotQA's (of our own)."""

import json

import pytest
import yaml
from datasets import Dataset
from helpers import ROOT
from scripted_chat import ScriptedChat

from correction_trl.data_utils import load_split
from correction_trl.errors import BadInput
from correction_trl.evaluation import evaluate_traces
from correction_trl.inference import Problem, run
from correction_trl.inference.arguments import InferenceArguments, make_strategies
from correction_trl.inference.key_conditions import key_condition
from correction_trl.tasks import open_domain


# In GenRead's JSON lines, questions in lower case as in WebQuestions and NaturalQuestions, or as a quiz asks them
ROWS = [
    {"question": "who wrote the opera that opened la scala in 1778?", "answer": ["Antonio Salieri", "Salieri"]},
    {"question": "what river runs through vienna?", "answer": ["Danube", "Donau"]},
    {"question": "Which Finnish composer wrote Finlandia in 1899?", "answer": ["Jean Sibelius"]},
    {"question": "On 20 July 1969, who was the second on the Moon?", "answer": ["Buzz Aldrin", "Edwin Aldrin"]},
    {"question": "Were Clara Schumann and Johannes Brahms born in the same city?", "answer": ["no"]},
    {"question": "In which decade of the 19th century did the Suez Canal open?", "answer": ["1860s", "the 1860s"]},
]  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "webq-test.jsonl"
    file.write_text("".join(json.dumps({"id": str(i), **row}) + "\n" for i, row in enumerate(ROWS)))
    return load_split(str(file), None, "test", data_function=open_domain.problems)


def test_gold_answers_are_right_and_those_of_another_question_wrong(rows):
    assert rows.column_names == ["prompt", "question", "answer"] and len(rows) == len(ROWS)
    pairs = [(text, row["answer"]) for row in rows for text in row["answer"]]
    texts, golds = (list(column) for column in zip(*pairs, strict=True))
    right = [f"I think so. The answer is {text}." for text in texts]
    wrong = right[2:] + right[:2]
    for value in (open_domain.exact_match, open_domain.f1):
        assert value(completions=right, answer=golds) == [1.0] * len(pairs)
        assert max(value(completions=wrong, answer=golds)) < 1
    assert open_domain.table(["?"], [["It was Buzz Aldrin", "Nobody"]], answer=[["Buzz Aldrin"]]) == {
        "f1": [pytest.approx((2 * 2 / 6 + 0) / 2)],
        "contains": [0.5],
    }


def test_entities_dates_and_concepts_are_hidden_and_restored(rows):
    found = {row["question"]: key_condition(row["question"], "entity") for row in rows}
    assert all(condition.question == question for question, condition in found.items())
    assert [condition.text for condition in found.values()] == [
        "1778",  # a year is told in lower case too
        "vienna",  # else the longest phrase between stop words and verbs, and of those the last
        "1899",
        "Moon",
        "Johannes Brahms",
        "Suez Canal",
    ]
    names = {
        "what did benjamin britten compose?": "benjamin britten compose",  # not all verbs are known
        "what was marie curie awarded in 1903?": "1903",
        "who was jane goodall married to?": "jane goodall",
        "what is lake baikal called?": "lake baikal",
        "where did the united nations meet first?": "united nations",
        "who plays the organ in notre dame?": "notre dame",
        "what is iceland's capital?": "iceland's capital",
    }
    dates = names | {
        "What happened on 12 May 1945?": "12 May 1945",
        "Who was president on December 7th, 1941?": "December 7th, 1941",
        "What was signed in july 1776 there?": "july 1776",
        "Which song of the 1960s was the longest?": "1960s",
        "Who painted it in the 19th century?": "19th century",
        "Who won on 3/4/1841?": "3/4/1841",
        "What did May 5 people say?": "May 5",  # a month by its capital and its day
    }
    for question, text in dates.items():
        condition = key_condition(question, "entity")
        assert (condition.text, condition.question) == (text, question)


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"question": "q?", "answer": ["a", "b", "a"]}, ["a", "b"]),
        ({"question": "q?", "answer": {"value": "a", "aliases": ["a", "c"], "type": "x"}}, ["a", "c"]),
        ({"question": "q?", "answers": ["a"], "url": "u"}, ["a"]),
        ({"question": "q?", "answer": "yes", "type": "comparison"}, ["yes"]),
    ],
)  # fmt: skip
def test_the_published_forms(row, answers):
    assert open_domain.problems(Dataset.from_list([row]))["answer"][0] == answers


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"goal": "g", "target": "t"},
            "no data of open-domain questions: the columns are goal, target, and question, ",
        ),
        ({"question": "q?", "answer": []}, "row 0 has no right answer in 'answer'; use a split with answers"),
        ({"question": "q?", "answer": 3}, "row 0, 'answer': a gold answer is text"),
    ],
)
def test_other_data_is_one_sentence(row, sentence):
    with pytest.raises(BadInput, match=sentence):
        open_domain.problems(Dataset.from_list([row]))


def search(question):
    """A retriever: what a user brings."""
    return ["The Danube runs through Vienna."] if "vienna" in question else [""]


def strategies(**changes):
    settings = yaml.safe_load((ROOT / "recipes/configs/evaluate/proco_open_domain.yaml").read_text())
    known = InferenceArguments.__dataclass_fields__
    arguments = InferenceArguments(**{key: value for key, value in settings.items() if key in known} | changes)
    return make_strategies(arguments, open_domain.exact_match)


def play(rows, model, strategy):
    chat = ScriptedChat(model)
    traces = run([strategy(chat, Problem.of(row)) for row in rows])
    return chat, evaluate_traces(
        rows, {(i, 0): trace for i, trace in enumerate(traces)}, open_domain.exact_match,
        extract_answer=open_domain.answer, n_turns=2, table_function=open_domain.table,
    )  # fmt: skip


def test_the_configured_run_reads_documents_verifies_and_corrects(rows):
    """A model that is first wrong and recovers the hidden phrase only from the right answer."""
    by_question = {row["question"]: row for row in rows}
    hidden = {key_condition(question, "entity").masked_question: question for question in by_question}

    def model(messages):
        text = messages[-1]["content"]
        if text.startswith("Write a background document"):
            return "A document" + (" without list" if "not in list" in text else "") + "."
        if "Is this proposition correct?" in text:
            return "INCORRECT"
        if "Which entity of this question matters most" in text:
            phrase = key_condition(text.partition("\n\n")[0], "entity").text
            return f"The most relevant entity is {phrase} and its category is a name."
        masked = next((masked for masked in hidden if text.startswith(masked)), None)
        if masked is not None:
            right = f"Suppose the answer is {by_question[hidden[masked]]['answer'][0]}." in text
            phrase = key_condition(hidden[masked], "entity").text
            return f"[X] refers to: {phrase if right else 'Zanzibar'}"
        assert "Passage: A document" in text and text.endswith("(your answer).")
        question = next(question for question in by_question if question in text)
        known = "not in list [Nobody]" in text and "without list" in text
        return f"The answer is {by_question[question]['answer'][0] if known else 'Nobody'}."

    chat, found = play(rows, model, strategies(controls=False)["proco"])
    assert found.metrics["acc@t1"]["mean"] == 0 and found.metrics["acc@t2"]["mean"] == 1
    assert found.table == ["f1@t1", "contains@t1", "f1@t2", "contains@t2"]
    assert [found.metrics[key]["mean"] for key in found.table] == [0, 0, 1, 1]
    assert found.counts["stop: verified"] == len(rows)
    # Document, answer, condition, check, proposition; document, answer, check
    assert len(chat.asked) == 8 * len(rows)


def test_passages_come_from_a_function_that_the_config_names(rows):
    settings = {"proco": {"kind": "entity", "question_column": "question", "passages": "test_open_domain:search"}}
    proco = strategies(controls=False, strategies=["proco"], strategy_settings=settings)["proco"]

    def model(messages):
        return "[X] refers to: vienna" if "Suppose" in messages[-1]["content"] else "The answer is the Danube."

    chat, found = play(rows.select([1]), model, proco)
    assert chat.messages[0].startswith("Passage: The Danube runs through Vienna.\n\n")
    assert found.metrics["acc@t1"]["mean"] == 1 and found.counts["stop: verified"] == 1
