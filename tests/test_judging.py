"""Values and feedback row by row: one that fails costs itself, one that always fails stops the run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.errors import BadInput
from correction_trl.judging import comment, judge


@given(st.lists(st.sampled_from(["1", "2.5", "none", "nan", "raise"]), min_size=1, max_size=20))
def test_bad_rows_cost_themselves(responses):
    def value(completions, weight, **columns):
        if "raise" in completions:
            raise RuntimeError("no")
        special = {"none": None, "nan": math.nan}
        return [special[c] if c in special else float(c) * w for c, w in zip(completions, weight, strict=True)]

    bad = [response in ("nan", "raise") for response in responses]
    columns = {"weight": list(range(len(responses)))}
    arguments = value, ["x"] * len(responses), responses, columns
    if all(bad):
        with pytest.raises(BadInput):
            judge(*arguments)
        return
    values, problems = judge(*arguments)
    assert len(problems) == sum(bad)
    for i, (response, found) in enumerate(zip(responses, values, strict=True)):
        assert found == (float(response) * i if response in ("1", "2.5") else None)


def test_feedback_gets_what_value_functions_get():
    def feedback(prompts, completions, answer):
        assert completions[0] == [{"role": "assistant", "content": "3"}]
        return [f"{p[0]['content']} is {a}" for p, a in zip(prompts, answer, strict=True)]

    texts, problems = comment(feedback, [[{"role": "user", "content": "1 + 1"}]], ["3"], {"answer": ["2"]})
    assert texts == ["1 + 1 is 2"] and not problems


def test_async_feedback_and_empty_texts():
    async def feedback(completions, **columns):
        return ["", None, "wrong"]

    assert comment(feedback, ["x"] * 3, ["a", "b", "c"], {}) == ([None, None, "wrong"], [])


@pytest.mark.parametrize(("returned", "sentence"), [("text", "a list of 2 texts"), ([1, 2], "returned int")])
def test_feedback_that_is_none(returned, sentence):
    with pytest.raises(BadInput, match=sentence):
        comment(lambda completions, **columns: returned, ["x"] * 2, ["a", "b"], {})


def test_nothing_to_judge():
    assert judge(None, [], [], {}) == ([], []) == comment(None, [], [], {})
