"""What a function of the user's measures beside right and wrong."""

import pytest
from datasets import Dataset

from correction_trl.errors import BadInput
from correction_trl.evaluation import evaluate_traces
from correction_trl.functions import named_text, with_settings
from correction_trl.inference import Trace


PROBLEMS = Dataset.from_dict({"prompt": ["a", "b", "c"], "answer": ["1", "2", "3"]})


def traces(*samples):
    """By problem, then by sample, the attempts as letters: two problems of which the third is not asked."""
    return {
        (row, sample): Trace(responses=list(attempts), tokens=[1] * len(attempts), replies=len(attempts))
        for row, of_problem in enumerate(samples)
        for sample, attempts in enumerate(of_problem)
    }


def right(completions, answer, **columns):
    return [float(completion == gold) for completion, gold in zip(completions, answer, strict=True)]


def different(prompts, samples, answer, scale=1.0):
    """How many texts differ; nothing is said of a problem whose answer is 2."""
    return {
        "different": [
            None if gold == "2" else scale * len(set(texts)) for texts, gold in zip(samples, answer, strict=True)
        ]
    }


def test_first_and_last_attempts_are_measured_by_problem():
    found = evaluate_traces(PROBLEMS, traces(["12", "13"], ["2", "2"]), right, table_function=different)
    assert found.table == ["different@t1", "different@t2"]
    assert found.per_problem["different@t1"] == [1.0, None, None]
    assert found.per_problem["different@t2"] == [2.0, None, None]  # a strategy that stopped keeps its last response
    assert found.metrics["different@t2"]["mean"] == 2.0 and found.metrics["different@t2"]["n"] == 1


def test_its_settings_are_bound_by_name():
    found = with_settings(different, {"scale": 3.0}, "table_settings", n_given=2)(["a"], [["x", "y"]], answer=["1"])
    assert found == {"different": [6.0]}
    with pytest.raises(BadInput, match="table_settings: 'different' has no setting 'scal'; it has answer, scale"):
        with_settings(different, {"scal": 3.0}, "table_settings", n_given=2)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda prompts, samples, **columns: [1.0], "returned list; it must return a dict"),
        (lambda prompts, samples, **columns: {"x": [1.0]}, "column 'x': it must return .* 2 numbers"),
        (lambda prompts, samples, **columns: {"x": ["1", 2.0]}, "column 'x' holds '1'"),
        (lambda prompts, samples: {}, "raised TypeError: .*answer"),
    ],
)
def test_what_it_returns_wrongly_is_a_sentence(function, sentence):
    with pytest.raises(BadInput, match=sentence):
        evaluate_traces(PROBLEMS, traces(["1"], ["2"]), right, table_function=function)


def test_a_column_must_not_hide_another_metric():
    def acc(prompts, samples, **columns):
        return {"acc": [1.0] * len(prompts)}

    with pytest.raises(BadInput, match="column 'acc@t1' has the name of another metric"):
        evaluate_traces(PROBLEMS, traces(["1"], ["2"]), right, table_function=acc)


def test_an_instruction_is_a_text_or_the_name_of_one():
    assert named_text("Think again: is it right?", "instruction") == "Think again: is it right?"
    assert named_text("correction_trl.policy.attempts:SELF_CORRECTION_INSTRUCTION", "instruction").startswith("There")
    with pytest.raises(BadInput, match="has no 'NOTHING'"):
        named_text("correction_trl.policy.attempts:NOTHING", "instruction")
    with pytest.raises(BadInput, match="names dict; it must be a text"):
        named_text("correction_trl.rewards.toxicity:WORDS", "instruction")
