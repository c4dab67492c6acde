"""What a model's check of an answer says, read from its words."""

import pytest
from helpers import takes_less_than
from scripted_chat import ScriptedChat

from correction_trl.inference import Problem, gated_revision, proco, run, self_refine
from correction_trl.inference._gated_revision import read_verdict
from correction_trl.inference._proco import read_prediction
from correction_trl.inference._self_refine import says_sentence


@pytest.mark.parametrize(
    "reply",
    [
        "The steps are fine and there are no errors.",
        "Yes, the calculation is right; no changes are needed.",
        "It adds up.\n\n**CORRECT**",
        "The answer is correct.",
        "I see nothing wrong here.",
        "Everything checks out; it is not wrong.",
        "I could not find any errors.",
        "No mistakes were found.",
        "No errors.",
        "The answer isn't wrong.",
        "Verdict: correct",
        "It could be wrong or right; I checked, and it is right.",
        "<think>It looks wrong.</think>\nTrue",
        "I don't see any mistakes.",
        "I wasn't able to find any errors.",
        "Looks good to me.",
        "The solution has no flaws.",
        "All steps are valid.",
        "I do not believe that the final answer is wrong.",
    ],
)
def test_the_answer_holds(reply):
    assert read_verdict(reply) is True


@pytest.mark.parametrize(
    "reply",
    [
        "The answer is not quite right.",
        "The answer is not entirely correct",
        "No, the sum is 12.",
        "There is an error in step 2.",
        "I found a small mistake in the second step.",
        "The correct answer is 12, so this is wrong.",
        "Step 1 is right. Step 2 is right. The final answer is wrong.",
        "It isn't correct.",
        "That’s not right",
        "It looks right at first, but it is false.",
        "This is hardly correct.",
        "It is far from right.",
        "There are errors.",
        "The second step contains a serious error.",
        "I do not believe the answer is correct.",
        "All steps are fine, but the result is inaccurate.",
        "no",
    ],
)
def test_the_answer_is_refuted(reply):
    assert read_verdict(reply) is False


@pytest.mark.parametrize(
    "reply",
    ["", "Hmm.", "We have 12 apples.", "The correct answer is 12.", "We have to correct the sum first", "knows"],
)
def test_nothing_is_said(reply):
    assert read_verdict(reply) is None


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("There is nothing to correct.", True),
        ("I checked every step. There is nothing to correct", True),
        ("**There is nothing to correct.**", True),
        ("there is nothing to correct!", True),
        ('The error is: "There is nothing to correct"', False),
        ("There is nothing to correct except the last line.", False),
        ("Do not say there is nothing to correct.", False),
        ("", False),
    ],
)
def test_a_stop_phrase_is_a_sentence_of_its_own(text, stops):
    assert says_sentence(text, "There is nothing to correct.") is stops


@pytest.mark.parametrize(
    ("reply", "prediction"),
    [
        ("[X] = 7 + 5 = 12", "12"),
        ("So [X] = (24 - 10) / 2 = 7.", "7"),
        ("[X] = 5, since 17 = 12 + 5", "5, since 17 = 12 + 5"),
        ("[X] is 12", "12"),
    ],
)
def test_a_sum_is_its_result(reply, prediction):
    assert read_prediction(reply, "[X]") == prediction


def test_a_check_that_was_cut_off_has_no_verdict():
    chat = ScriptedChat(["12", "Step 1 is wrong…"])
    (trace,) = run([gated_revision(chat, Problem("5 + 7 = ?"))])
    assert trace.stop == "no verdict" and trace.responses == ["12"]


@pytest.mark.parametrize("reply", ["He bought 2 games, so he bought…", "Step 2…"])
def test_a_verification_that_was_cut_off_has_no_verdict(reply):
    chat = ScriptedChat(["The answer is 5.", reply])
    (trace,) = run([proco(chat, Problem("Tom had 3 games and bought 2 games. How many has he?"), kind="number")])
    assert trace.stop == "no verdict"


def test_quoted_stop_words_do_not_end_self_refine():
    quoted = 'The error is: "There is nothing to correct"'
    chat = ScriptedChat(["1", quoted, "2", "There is nothing to correct."])
    (trace,) = run([self_refine(chat, Problem("5 + 7 = ?"))])
    assert trace.stop == "stop phrase" and trace.responses == ["1", "2"]


@pytest.mark.parametrize(
    "part", ["not ", "no a b ", "a ", "is", "1 + ", "[X] = ", "yes", "There is nothing to correct ", "no\n"]
)
def test_takes_linear_time(part):
    text = part * (100_000 // len(part))
    assert takes_less_than(1, read_verdict, text)
    assert takes_less_than(1, read_prediction, text, "[X]")
    assert takes_less_than(1, says_sentence, text, "There is nothing to correct.")
