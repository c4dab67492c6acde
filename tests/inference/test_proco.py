"""ProCo against a model that says what the test wrote down: every request, and when it stops."""

import json
from functools import partial
from pathlib import Path

import pytest
from scripted_chat import ScriptedChat

from correction_trl.errors import BadInput
from correction_trl.inference import (
    Problem,
    gated_revision,
    multiple_choice,
    proco,
    run,
    verify_by_key_condition,
)
from correction_trl.inference._proco import (
    EXCLUDE,
    GENERATE_PASSAGE,
    IDENTIFY,
    PROPOSITION,
    READ_PASSAGES,
    VERIFY,
    read_prediction,
    same_phrase,
)
from correction_trl.inference.key_conditions import key_condition


DATA = Path(__file__).parents[3] / "shared" / "data"
TEXT = "Sara had 12 apples and ate 5 of them. How many apples are left?"
MASKED = "Sara had [X] apples and ate 5 of them. How many apples are left?"
PROBLEM = Problem([{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}], {"answer": "7"})


def play(script, problem=PROBLEM, strategy=proco, **settings):
    chat = ScriptedChat(script)
    (trace,) = run([strategy(chat, problem, **settings)])
    return chat, trace


def verification(answer, masked=MASKED, mask="[X]", category=""):
    return VERIFY.format(masked_question=masked, answer=answer, mask=mask, category=category)


def excluding(*answers, question=TEXT):
    return EXCLUDE.format(question=question, answers=", ".join(answers))


class TestNumbers:
    def test_a_verified_answer_is_kept(self):
        chat, trace = play(["It is 7.", "7 + 5 = 12. [X] refers to: 12 apples"])
        assert chat.messages == [TEXT, verification("7")]
        # The verification is a conversation of its own, without the system's message about the answer
        assert [message["role"] for message in chat.asked[1]] == ["user"]
        assert (trace.responses, trace.stop, trace.replies) == (["It is 7."], "verified", 2)
        assert sum(trace.tokens) == len("It is 7.") + len("7 + 5 = 12. [X] refers to: 12 apples")

    def test_refuted_answers_are_excluded_until_one_is_verified(self):
        chat, trace = play(["17", "[X] refers to: 22", "8", "[X] = 13", "7", "[X] is 12"])
        assert chat.messages == [
            TEXT,
            verification("17"),
            excluding("17"),
            verification("8"),
            excluding("17", "8"),
            verification("7"),
        ]
        assert chat.asked[2][0] == {"role": "system", "content": "Be brief."}  # the prompt, with another question
        assert (trace.responses, trace.stop) == (["17", "8", "7"], "verified")

    def test_a_repeated_answer_ends_it(self):
        chat, trace = play(["17", "[X] refers to: 22", "8", "[X] refers to: 13", "so 17.0"])
        assert (trace.responses, trace.stop) == (["17", "8", "so 17.0"], "repeated")
        assert len(chat.asked) == 5

    def test_the_last_round_ends_it(self):
        chat, trace = play(["1", "[X] is 6", "2", "[X] is 7", "3"], rounds=2)
        assert (trace.responses, trace.stop) == (["1", "2", "3"], "last round")
        chat, trace = play(["1"], rounds=0)
        assert (trace.responses, trace.stop, len(chat.asked)) == (["1"], "last round", 1)

    def test_what_cannot_be_verified_is_left_alone(self):
        assert play(["I do not know."])[1].stop == "no answer"
        assert play(["7", "I cannot tell."])[1].stop == "no verdict"
        none = Problem("How many apples are left of all that she had?")
        chat, trace = play(["7"], none)
        assert (trace.stop, len(chat.asked)) == ("no key condition", 1)

    def test_a_plain_prompt_stays_plain(self):
        chat, _ = play(["17", "[X] refers to: 22", "7", "[X] refers to: 12"], Problem(TEXT))
        assert chat.messages == [TEXT, verification("17"), excluding("17"), verification("7")]

    def test_the_question_is_masked_not_what_surrounds_it(self):
        prompt = f"Answer in 3 lines.\n{TEXT}\nUse 2 decimals."
        problem = Problem([{"role": "user", "content": prompt}], {"question": TEXT})
        chat, _ = play(["17", "[X] is 22", "7", "[X] is 12"], problem, question_column="question")
        assert chat.messages == [prompt, verification("17"), prompt.replace(TEXT, excluding("17")), verification("7")]
        with pytest.raises(BadInput, match="'questions'`: the dataset has no such column"):
            play(["17"], problem, question_column="questions")

    def test_the_texts_and_the_mask_can_be_chosen(self):
        verify = "{masked_question} Suppose the answer is {answer}. What is {mask}?"
        exclude = "{question} not {answers}"
        problem = Problem("0188 + 0192 =")
        chat, trace = play(["0370", "0178", "0380", "0188"], problem, verify=verify, exclude=exclude, mask="X")
        assert chat.messages == [
            "0188 + 0192 =",
            "X + 0192 = Suppose the answer is 0370. What is X?",
            "0188 + 0192 = not 0370",
            "X + 0192 = Suppose the answer is 0380. What is X?",
        ]
        assert trace.stop == "verified"

    def test_thoughts_are_no_prediction(self):
        reply = "<think>[X] refers to: 12? No.</think>[X] refers to: 22"
        _, trace = play(["17", reply, "7", "[X] is 12"])
        assert trace.responses == ["17", "7"]

    def test_the_model_may_name_the_number(self):
        named = "The most relevant number is 5 and its category is eaten apples."
        chat, _ = play(["7", named, "[X] refers to: 5"], ask_for_condition=True)
        masked = TEXT.replace("5", "[X]")
        category = " (The category of [X] is eaten apples.)"
        assert chat.messages == [
            TEXT,
            IDENTIFY.format(question=TEXT, kind="number"),
            verification("7", masked, category=category),
        ]
        chat, _ = play(["7", "The most relevant number is 99.", "[X] is 12"], ask_for_condition=True)
        assert chat.messages[2] == verification("7")  # the question has no 99: the rules decide


class TestPhrases:
    QUESTION = "Who designed the Eiffel Tower?"
    MASKED = "Who designed the [X]?"

    def test_an_entity_is_recognised(self):
        chat, trace = play(["Eiffel", "[X] refers to: the Eiffel tower."], Problem(self.QUESTION), kind="entity")
        assert chat.messages == [self.QUESTION, verification("Eiffel", self.MASKED)]
        assert trace.stop == "verified"

    def test_another_prediction_is_put_to_the_model(self):
        statue = "[X] refers to: Statue of Liberty"
        script = ["Eiffel", statue, "That is CORRECT."]
        chat, trace = play(script, Problem(self.QUESTION), kind="entity")
        assert chat.messages[2] == PROPOSITION.format(
            masked_question=self.MASKED,
            mask="[X]",
            answer="Eiffel",
            condition="Eiffel Tower",
            prediction="Statue of Liberty",
        )
        assert (trace.stop, trace.responses) == ("verified", ["Eiffel"])
        script = ["Gaudi", statue, "INCORRECT", "Sauvestre", "[X] refers to: Eiffel Tower"]
        chat, trace = play(script, Problem(self.QUESTION), kind="entity")
        assert chat.messages[3] == excluding("Gaudi", question=self.QUESTION)
        assert (trace.stop, trace.responses) == ("verified", ["Gaudi", "Sauvestre"])

    def test_without_the_proposition_another_prediction_refutes(self):
        script = ["Gaudi", "[X] is Sagrada Familia", "Gaudi"]
        chat, trace = play(script, Problem(self.QUESTION), kind="entity", proposition=None)
        assert (trace.stop, len(chat.asked)) == ("repeated", 3)

    def test_a_concept(self):
        question = "Where would you find a jellyfish that has not been captured?"
        chat, trace = play(["the ocean", "[X] refers to: a jelly fish"], Problem(question), kind="concept")
        assert chat.messages[1] == verification("the ocean", question.replace("jellyfish", "[X]"))
        assert trace.stop == "verified"

    def test_a_check_that_cannot_be_read_goes_on_to_the_proposition(self):
        """As the authors do, whose code then asks about "None"."""
        put = PROPOSITION.format(
            masked_question=self.MASKED, mask="[X]", answer="Gaudi", condition="Eiffel Tower", prediction="None"
        )
        for unreadable in ("", "<think>[X] refers to: the Eiffel", "[X] refers to: the Eiffel…"):
            script = ["Gaudi", unreadable, "INCORRECT", "Sauvestre", "[X] refers to: Eiffel Tower"]
            chat, trace = play(script, Problem(self.QUESTION), kind="entity")
            assert chat.messages[2] == put and (trace.responses, trace.stop) == (["Gaudi", "Sauvestre"], "verified")
        # Without a proposition, or where that cannot be read either, the answer stays
        assert play(["Gaudi", ""], Problem(self.QUESTION), kind="entity", proposition=None)[1].stop == "no verdict"
        assert play(["Gaudi", "", "Hm."], Problem(self.QUESTION), kind="entity")[1].stop == "no verdict"
        assert play(["7", ""])[1].stop == "no verdict"  # a number has no proposition

    def test_names_with_a_number_in_common_are_not_the_same_answer(self):
        script = ["World War 2", "[X] is A", "INCORRECT", "Terminator 2", "[X] is B", "INCORRECT", "world war  2"]
        _, trace = play(script, Problem(self.QUESTION), kind="entity")
        assert (trace.responses[1:], trace.stop) == (["Terminator 2", "world war  2"], "repeated")

    def test_a_letter_is_named_by_its_choice(self):
        question = "Where would you find a jellyfish that has not been captured?"
        problem = Problem(f"{question} (A) a tank (B) the sea", {"question": question, "texts": ["a tank", "the sea"]})
        settings = {"kind": "concept", "question_column": "question", "choices_column": "texts"}
        masked = question.replace("jellyfish", "[X]")
        script = ["The answer is (A).", "[X] refers to: fish", "INCORRECT", "(B)", "[X] refers to: jellyfish"]
        chat, trace = play(script, problem, extract_answer=multiple_choice, **settings)
        assert chat.messages[1] == verification("a tank", masked) and chat.messages[4] == verification(
            "the sea", masked
        )
        assert chat.messages[3] == f"{excluding('a tank', question=question)} (A) a tank (B) the sea"
        assert trace.stop == "verified"
        with pytest.raises(
            BadInput, match="'text'`: the dataset has no such column with a list of texts .*question, texts"
        ):
            play(script, problem, **settings | {"choices_column": "text"})

    def test_an_unknown_kind_is_refused(self):
        with pytest.raises(BadInput, match="number, entity, concept"):
            play(["7"], kind="verb")


class TestPassages:
    QUESTION = "Who designed the Eiffel Tower?"
    AGAIN = excluding("Gaudi", question=QUESTION)
    PROMPT = f"{QUESTION} Answer with a name."

    def read(self, passages, question):
        return f"{READ_PASSAGES.format(passages=passages, question=question)} Answer with a name."

    def play(self, script, **settings):
        problem = Problem(self.PROMPT, {"question": self.QUESTION})
        return play(script, problem, kind="entity", question_column="question", **settings)

    def test_a_document_is_written_before_each_answer(self):
        script = ["Gaudi built towers.", "Gaudi", "[X] is Sagrada", "INCORRECT"]
        script += ["<think>Hm.</think>Sauvestre drew it.", "Sauvestre", "[X] is Eiffel Tower"]
        chat, trace = self.play(script, passages="generate")
        assert chat.messages[:2] == [
            GENERATE_PASSAGE.format(question=self.QUESTION),
            self.read("Gaudi built towers.", self.QUESTION),
        ]
        assert chat.messages[4:6] == [
            GENERATE_PASSAGE.format(question=self.AGAIN),
            self.read("Sauvestre drew it.", self.AGAIN),
        ]
        assert (trace.responses, trace.stop) == (["Gaudi", "Sauvestre"], "verified")
        assert trace.tokens[0] == len("Gaudi built towers.") + len("Gaudi")
        # GenRead alone
        _, trace = self.play(["Gaudi built towers.", "Gaudi"], passages="generate", rounds=0)
        assert (trace.responses, trace.replies) == (["Gaudi"], 2)

    def test_passages_are_retrieved_for_each_answer(self):
        asked = []

        def search(question):
            asked.append(question)
            return ["One.", "Two."]

        chat, trace = self.play(["Gaudi", "[X] is Sagrada", "INCORRECT", "Gaudi"], passages=search)
        assert asked == [self.QUESTION, self.AGAIN]
        assert chat.messages[0] == self.read("One.\n\nTwo.", self.QUESTION)
        assert chat.messages[3] == self.read("One.\n\nTwo.", self.AGAIN)
        chat, _ = self.play(["Gaudi", "[X] is the Eiffel Tower"], passages=lambda question: [""])
        assert chat.messages[0] == self.read("", self.QUESTION)  # said to be none

    @pytest.mark.parametrize("found", [None, [], "One.", [1], [None]])
    def test_a_function_that_returns_nothing_is_one_sentence(self, found):
        def search(question):
            return found

        sentence = (
            "`passages`: 'search' returned (nothing|'One.'|.1.|.None.) for the question 'Who designed .*; it has to "
        )
        with pytest.raises(BadInput, match=sentence):
            self.play(["Gaudi"], passages=search)

    def test_a_function_that_fails_names_the_question(self):
        with pytest.raises(BadInput, match="'<lambda>' raised ZeroDivisionError on the question 'Who designed"):
            self.play(["Gaudi"], passages=lambda question: 1 / 0)
        with pytest.raises(BadInput, match="'search'` is neither 'generate' nor a function"):
            self.play(["Gaudi"], passages="search")


@pytest.mark.parametrize(
    ("script", "responses", "stop"),
    [
        (["7", "[X] refers to: 12"], ["7"], "held"),
        (["17", "[X] refers to: 22", "7", "[X] is 12"], ["17", "7"], "held"),
        (["17", "no idea"], ["17"], "no verdict"),
        (["no idea"], ["no idea"], "no verdict"),
    ],
)
def test_it_gates_revisions(script, responses, stop):
    strategy = partial(gated_revision, check=verify_by_key_condition, instruction="Again.", rounds=2)
    chat, trace = play(script, strategy=strategy)
    assert (trace.responses, trace.stop) == (responses, stop)
    if len(script) == 4:
        assert chat.messages == [TEXT, verification("17"), "Again.", verification("7")]


@pytest.mark.parametrize(
    ("reply", "prediction"),
    [
        ("First [X] is 3.\nSo [X] refers to: 12 apples.", "12 apples"),
        ("[x] = 4", "4"),
        ("I think\nit is Paris", "it is Paris"),
        ("", ""),
    ],
)
def test_what_a_reply_says_the_mask_stands_for(reply, prediction):
    assert read_prediction(reply, "[X]") == prediction


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("the Eiffel Tower", "Eiffel tower.", True),
        ("Tower", "Eiffel Tower", True),
        ("Eifel Towr", "Eiffel Tower", True),
        ("Rome", "Oslo", False),  # four letters apart: ProCo's own 5 would take them for the same
        ("art", "party", False),
        ("", "Rome", False),
    ],
)
def test_when_two_names_are_the_same(a, b, same):
    assert same_phrase(a, b) is same and same_phrase(b, a) is same


@pytest.mark.parametrize("name", ["addsub", "multiarith"])
def test_on_real_problems_the_right_answer_is_kept_and_a_wrong_one_is_not(name):
    """With a model that is first wrong and recovers a condition only from the right answer."""
    file = DATA / "mawps" / f"{name}.jsonl"
    if not file.is_file():
        pytest.skip("the MAWPS problems are not here (../shared/data/mawps)")
    rows = [json.loads(line) for line in file.read_text().splitlines()][:200]

    for row in rows:
        target = f"{row['target']:g}"
        condition = key_condition(row["input"], "number")

        def model(messages, row=row, target=target, condition=condition):
            text = messages[-1]["content"]
            if text == row["input"]:
                return "The answer is 987654."
            if "not in list [987654]" in text:
                return f"The answer is {target}."
            recovered = condition.text if f"Suppose the answer is {target}. " in text else "-1"
            return f"[X] refers to: {recovered}"

        _, trace = play(model, Problem(row["input"]))
        assert trace.stop == "verified" and trace.responses[-1] == f"The answer is {target}."
        assert trace.replies == 4
