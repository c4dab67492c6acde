"""The CommonsenseQA pack: rows shaped like the Hub's and like the authors' file (of our own)."""

import pytest
import yaml
from datasets import Dataset
from helpers import ROOT
from scripted_chat import ScriptedChat

from correction_trl.errors import BadInput
from correction_trl.evaluation import evaluate_traces
from correction_trl.inference import Problem, run
from correction_trl.inference.arguments import InferenceArguments, make_strategies
from correction_trl.inference.key_conditions import key_condition
from correction_trl.tasks import commonsense_qa


QUESTIONS = [
    ("Where does a careful owner leave a violin over night?", ["case", "oven", "pond", "roof", "street"], "A"),
    ("What would a thirsty traveller look for in the desert?", ["sand", "a dune", "an oasis", "snow", "a map"], "C"),
    ("Why did she put on a heavy coat before going out?", ["hunger", "heat", "fame", "music", "cold"], "E"),
]


@pytest.fixture
def rows():
    return commonsense_qa.problems(
        Dataset.from_list(
            [
                {"id": "1", "question": q, "choices": {"label": list("ABCDE"), "text": c}, "answerKey": key}
                for q, c, key in QUESTIONS
            ]
        )
    )  # fmt: skip


def test_gold_letters_are_right_and_all_others_wrong(rows):
    assert rows.column_names == ["prompt", "question", "choices", "answer"]
    assert rows[1]["prompt"][0]["content"].splitlines()[2:7] == [
        "(A) sand", "(B) a dune", "(C) an oasis", "(D) snow", "(E) a map"
    ]  # fmt: skip
    for letter in "ABCDE":
        values = commonsense_qa.choice_accuracy(
            completions=[f"So. The answer is ({letter})."] * 3, answer=rows["answer"]
        )
        assert values == [float(key == letter) for *_, key in QUESTIONS]


def test_the_authors_file_gives_the_same_rows(rows):
    published = []
    for question, texts, key in QUESTIONS:
        choices = [{"label": label, "text": text} for label, text in zip("ABCDE", texts, strict=True)]
        published.append({"answerKey": key, "id": "1", "question": {"stem": question, "choices": choices}})
    assert commonsense_qa.problems(Dataset.from_list(published)).to_list() == rows.to_list()


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"question": "q", "options": ["a"]}, "no data of CommonsenseQA: the columns are question, options"),
        ({"question": "q", "choices": {"label": ["A"], "text": ["a"]}, "answerKey": ""}, "no answer .* validation"),
        ({"question": "q", "answerKey": "A"}, "row 0 has no choices with the letters A, B, "),
        ({"question": "q", "choices": {"label": ["1"], "text": ["a"]}, "answerKey": "1"}, "row 0 has no choices with"),
    ],
)  # fmt: skip
def test_other_data_is_one_sentence(row, sentence):
    with pytest.raises(BadInput, match=sentence):
        commonsense_qa.problems(Dataset.from_list([row]))


def test_concepts_are_hidden_and_restored_and_the_configured_run_corrects(rows):
    concepts = [key_condition(row["question"], "concept") for row in rows]
    assert [condition.text for condition in concepts] == [
        "careful owner leave",
        "thirsty traveller look",
        "heavy coat",
    ]
    assert [condition.question for condition in concepts] == rows["question"]
    settings = yaml.safe_load((ROOT / "recipes/configs/evaluate/proco_commonsense.yaml").read_text())
    settings = {key: value for key, value in settings.items() if key in InferenceArguments.__dataclass_fields__}
    proco = make_strategies(InferenceArguments(**settings | {"controls": False}), commonsense_qa.choice_accuracy)[
        "proco"
    ]
    right = {row["question"]: row["choices"]["ABCDE".index(row["answer"])] for row in rows}

    def model(messages):
        text = messages[-1]["content"]
        if "Is this proposition" in text:
            return "INCORRECT"
        if "Which concept of this question matters most" in text:
            phrase = key_condition(text.partition("\n\n")[0], "concept").text
            return f"The most relevant concept is {phrase} and its category is unknown."
        for condition in concepts:
            if text.startswith(condition.masked_question):
                known = f"Suppose the answer is {right[condition.question]}." in text
                return f"[X] refers to: {condition.text if known else 'nothing of the kind'}"
        question, answer = next(item for item in right.items() if item[0] in text)
        letter = "ABCDE"[next(c for q, c, _ in QUESTIONS if q == question).index(answer)]
        return f"The answer is ({letter if 'not in list' in text else 'B'})."

    traces = run([proco(ScriptedChat(model), Problem.of(row)) for row in rows])
    found = evaluate_traces(rows, {(i, 0): t for i, t in enumerate(traces)}, commonsense_qa.choice_accuracy, n_turns=2)
    assert (found.metrics["acc@t1"]["mean"], found.metrics["acc@t2"]["mean"]) == (0, 1)
    assert found.counts["stop: verified"] == 3
