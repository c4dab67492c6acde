import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.errors import BadInput, TeacherFailed
from correction_trl.functions import (
    call_teacher,
    call_value_function,
    import_function,
    teacher_name,
    try_feedback_function,
    try_value_function,
    whole_characters,
)


PROMPTS, RESPONSES = ["1+1=", "2+2=", "3+3="], ["2", "5", "6"]
COLUMNS = {"answer": ["2", "4", "6"], "level": [1, 2, 3]}


def correct(teacher):
    return call_teacher(teacher, PROMPTS, RESPONSES, COLUMNS)


def rate(function, prompts=PROMPTS):
    return call_value_function(function, prompts, RESPONSES, COLUMNS)


# ---------------------------------------------------------------- import_function


def test_import_function_finds_a_function():
    from correction_trl.carry_addition import exact_match

    assert import_function("correction_trl.carry_addition:exact_match", "value_function") is exact_match


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("exact_match", "`teacher='exact_match'` is not of the form 'package.module:function'"),
        ("correction_trl.carry_addition:", "is not of the form 'package.module:function'"),
        (":exact_match", "is not of the form 'package.module:function'"),
        ("no_such_module_of_mine:f", "there is no module 'no_such_module_of_mine'; is its folder on PYTHONPATH"),
        ("correction_trl.carry_addition:f", "the module 'correction_trl.carry_addition' has no 'f'"),
    ],
)
def test_import_function_names_what_is_wrong(path, message):
    with pytest.raises(ValueError, match=message):
        import_function(path, "teacher")


def test_import_function_names_the_module_that_the_users_module_lacks(tmp_path, monkeypatch):
    (tmp_path / "needs_another.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="there is no module 'not_installed_anywhere'"):
        import_function("needs_another:f", "teacher")


# ---------------------------------------------------------------- teachers


def test_a_teacher_sees_the_prompts_the_responses_and_every_further_column():
    seen = {}

    def teacher(**arguments):
        seen.update(arguments)
        return arguments["answer"]

    assert correct(teacher) == ["2", "4", "6"]
    assert seen == {"prompts": PROMPTS, "responses": RESPONSES, **COLUMNS}


def test_a_teacher_may_be_an_object_with_a_method_correct():
    class Tutor:
        def __init__(self, suffix):
            self.suffix = suffix

        def correct(self, prompts, responses, answer, **columns):
            return [right + self.suffix for right in answer]

        def __call__(self, **arguments):
            raise AssertionError("`correct` comes first")

    assert correct(Tutor(".")) == ["2.", "4.", "6."]
    assert teacher_name(Tutor("")) == "Tutor"


def test_a_teacher_may_be_a_callable_object():
    class Tutor:
        def __call__(self, prompts, responses, **columns):
            return responses

    assert correct(Tutor()) == RESPONSES


def test_a_teacher_cannot_change_the_batch_under_our_hands():
    def teacher(prompts, responses, **columns):
        corrections = list(responses)
        responses.clear()
        prompts.clear()
        return corrections

    assert correct(teacher) == RESPONSES
    assert len(PROMPTS) == len(RESPONSES) == 3


def test_none_and_the_empty_string_mean_no_correction():
    assert correct(lambda **_: ["2", None, ""]) == ["2", None, None]


@pytest.mark.parametrize("blank", [" ", "\n", " \t\r\n", "\u00a0", "\u2003\u3000"])
def test_white_space_alone_is_no_correction(blank):
    assert correct(lambda **_: ["2 ", blank, f"{blank}6"]) == ["2 ", None, f"{blank}6"]


@pytest.mark.parametrize(
    ("text", "whole"),
    [("a\ud800b", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d\ude00", "😀"), ("\udfff\ud800", "\ufffd\ufffd")],
)
def test_half_a_character_is_replaced_where_text_enters(text, whole):
    assert whole_characters(text) == whole and whole_characters(f"é 😀{text}") == f"é 😀{whole}"
    with pytest.warns(UserWarning, match="1 of 3 corrections by the teacher 'my_teacher' held half of a character"):

        def my_teacher(**_):
            return ["2", text, None]

        assert correct(my_teacher) == ["2", whole, None]
    feedback, problems = try_feedback_function(lambda **_: ["", text, None], PROMPTS, RESPONSES, {})
    assert feedback == [None, whole, None] and not problems


def test_what_a_function_says_when_it_raises_is_one_line():
    def my_teacher(**_):
        raise RuntimeError("first \ud800\nsecond" + "x" * 10_000)

    with pytest.raises(TeacherFailed, match="raised RuntimeError: first \ufffd.$"):
        correct(my_teacher)


@pytest.mark.parametrize("returned", ["100", b"100", {0: 1, 1: 1, 2: 1}, {1.0, 2.0, 3.0}, np.array(1.0)])
def test_values_are_a_list(returned):
    with pytest.raises(BadInput, match="returned no list for 3 responses"):
        call_value_function(lambda **_: returned, PROMPTS, RESPONSES, {})


def test_a_number_beyond_all_bounds_is_no_value():
    with pytest.raises(BadInput, match="for row 1; expected a number or None"):
        call_value_function(lambda **_: [1, 10**400, 1], PROMPTS, RESPONSES, {})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (["2"], "returned 1 items for 3 responses; it must return one correction per response"),
        (["2"] * 4, "returned 4 items for 3 responses"),
        ([], "returned 0 items for 3 responses"),
        (None, "returned no list for 3 responses"),
        ("246", "returned no list for 3 responses"),
        (iter(["2", "4", "6"]), "returned no list for 3 responses"),
        (
            ["2", 4, "6"],
            "returned int for item 1 of the batch; a correction is the corrected response as text, or `None`",
        ),
        (["2", "4", [{"role": "assistant", "content": "6"}]], "returned list for item 2 of the batch"),
        (["2", "4", float("nan")], "returned float for item 2"),
    ],
)
def test_a_teacher_that_returns_something_else_is_named(returned, message):
    def my_teacher(**_):
        return returned

    with pytest.raises(ValueError, match=f"The teacher 'my_teacher' {message}"):
        correct(my_teacher)


def test_a_teacher_may_be_async():
    async def teacher(answer, **_):
        await asyncio.sleep(0)
        return answer

    assert correct(teacher) == ["2", "4", "6"]


@pytest.mark.parametrize("nobody", ["gpt-4", 7, Path], ids=str)
def test_what_is_no_teacher_is_refused(nobody):
    with pytest.raises(ValueError, match="is no teacher: pass a function, or an object with a method `correct`"):
        correct(nobody)


def test_what_a_teacher_raises_is_said_in_one_sentence_and_kept_as_the_cause():
    def teacher(**_):
        raise TimeoutError("the endpoint is down")

    with pytest.raises(TeacherFailed, match="'teacher' raised TimeoutError: the endpoint is down") as caught:
        correct(teacher)
    assert isinstance(caught.value.__cause__, TimeoutError)


# ---------------------------------------------------------------- value functions


def test_a_value_function_sees_plain_completions_for_plain_prompts():
    seen = {}

    def value(**arguments):
        seen.update(arguments)
        return [1.0, 0, None]

    assert rate(value) == [1.0, 0.0, None]
    assert seen == {"prompts": PROMPTS, "completions": RESPONSES, **COLUMNS}


def test_a_value_function_sees_messages_for_conversational_prompts():
    seen = []

    def value(completions, **_):
        seen.extend(completions)
        return [1, 1, 1]

    rate(value, prompts=[[{"role": "user", "content": prompt}] for prompt in PROMPTS])
    assert seen == [[{"role": "assistant", "content": response}] for response in RESPONSES]


def test_a_value_function_may_be_async():
    async def value(completions, answer, **_):
        await asyncio.sleep(0)
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    assert rate(value) == [1.0, 0.0, 1.0]


def test_an_async_value_function_works_in_a_notebook():
    async def value(completions, **_):
        return [1.0] * len(completions)

    async def cell():  # a notebook runs its cells inside an event loop
        return rate(value)

    assert asyncio.run(cell()) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 0.0], "returned 2 values for 3 responses"),
        ([1.0] * 4, "returned 4 values for 3 responses"),
        (None, "returned nothing for 3 responses"),
        (iter([1.0, 0.0, 1.0]), "returned no list for 3 responses"),
        ([1.0, "good", 0.0], "returned 'good' for row 1; expected a number or None"),
        ([1.0, 0.0, [1.0]], r"returned \[1.0\] for row 2; expected a number or None"),
        ([1.0, float("nan"), 0.0], r"returned NaN for row 1 \(response '5'\); return None for what cannot be judged"),
    ],
)
def test_a_value_function_that_returns_something_else_is_named(returned, message):
    def my_value(**_):
        return returned

    with pytest.raises(ValueError, match=f"The value function 'my_value' {message}"):
        rate(my_value)


def test_a_value_function_that_raises_is_named_with_the_row():
    def my_value(completions, **_):
        return [{"2": 1.0}[c] for c in completions]  # raises on both of the others: the first is named

    with pytest.raises(ValueError, match=r"'my_value' raised KeyError on row 1 of the batch \(response '5'\): '5'"):
        rate(my_value)


def test_an_async_value_function_that_raises_is_named_with_the_row():
    async def my_value(completions, **_):
        return [{"2": 1.0, "5": 0.0}[c] for c in completions]

    with pytest.raises(ValueError, match=r"'my_value' raised KeyError on row 2 of the batch \(response '6'\): '6'"):
        rate(my_value)


def test_a_value_function_that_raises_on_the_whole_batch_only_says_so():
    def my_value(completions, **_):
        if len(completions) > 1:
            raise MemoryError("too many at once")
        return [1.0]

    with pytest.raises(ValueError, match="'my_value' raised MemoryError on the batch: too many at once"):
        rate(my_value)


# --------------------------------------------------------------------------------------------------------------------
# Row by row: one that fails costs itself, one that always fails stops the run
# --------------------------------------------------------------------------------------------------------------------


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
            try_value_function(*arguments)
        return
    values, problems = try_value_function(*arguments)
    assert len(problems) == sum(bad)
    for i, (response, found) in enumerate(zip(responses, values, strict=True)):
        assert found == (float(response) * i if response in ("1", "2.5") else None)


def test_feedback_gets_what_value_functions_get():
    def feedback(prompts, completions, answer):
        assert completions[0] == [{"role": "assistant", "content": "3"}]
        return [f"{p[0]['content']} is {a}" for p, a in zip(prompts, answer, strict=True)]

    texts, problems = try_feedback_function(
        feedback, [[{"role": "user", "content": "1 + 1"}]], ["3"], {"answer": ["2"]}
    )
    assert texts == ["1 + 1 is 2"] and not problems


def test_async_feedback_and_empty_texts():
    async def feedback(completions, **columns):
        return ["", None, "wrong"]

    assert try_feedback_function(feedback, ["x"] * 3, ["a", "b", "c"], {}) == ([None, None, "wrong"], [])


@pytest.mark.parametrize(("returned", "sentence"), [("text", "a list of 2 texts"), ([1, 2], "returned int")])
def test_feedback_that_is_none(returned, sentence):
    with pytest.raises(BadInput, match=sentence):
        try_feedback_function(lambda completions, **columns: returned, ["x"] * 2, ["a", "b"], {})


def test_nothing_to_try_value_function():
    assert try_value_function(None, [], [], {}) == ([], []) == try_feedback_function(None, [], [], {})
