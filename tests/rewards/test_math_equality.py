"""Equal and unequal pairs of answers, one line each in `equality_pairs.jsonl`; and arithmetic that has a bound."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from helpers import takes_less_than
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.rewards import answers_equal
from correction_trl.rewards.answer_writing import tidy
from correction_trl.rewards.math_equality import quick_verdict
from correction_trl.rewards.number_reading import Huge, exact_value, plain_number, read_quantity


PAIRS = [json.loads(line) for line in (Path(__file__).parent / "equality_pairs.jsonl").read_text("utf-8").splitlines()]


TOKENS = [
    "1",
    "42",
    "0",
    "x",
    " ",
    "+",
    "-",
    "/",
    "^",
    "_",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    r"\{",
    r"\}",
    ",",
    ";",
    "=",
    "<",
    r"\ne ",
    "!",
    r"\frac",
    r"\sqrt",
    r"\text{",
    " cm",
    " million",
    "%",
    "$",
    r"\$",
    ".",
    r"\overline{3}",
    ":",
    " or ",
    " and ",
    r"\pm ",
    "½",
    "²",
    "−",
    "e9",
    r"\boxed{",
    r"\infty",
    r"\cup ",
    "Monday",
    "ABC",
    "|",
    r"\\",
    "~",
    "\n",
    r"\left(",
    r"^\circ",
    "_8",
    "x<",
    "1/2",
    "three",
    "PM",
]


def test_there_are_enough_pairs():
    equal = [pair["equal"] for pair in PAIRS]
    assert equal.count(True) >= 300 and equal.count(False) >= 300


@pytest.mark.parametrize("equal", [True, False])
def test_every_pair(equal):
    pairs = [pair for pair in PAIRS if pair["equal"] is equal]
    verdicts = answers_equal([pair["gold"] for pair in pairs], [pair["answer"] for pair in pairs], timeout=30.0)
    wrong = [(*pair.values(), verdict) for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is not equal]
    assert not wrong


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair["equal"]][::7], ids=lambda pair: pair["gold"])
def test_equal_either_way_round(pair):
    assert answers_equal([pair["answer"]], [pair["gold"]], timeout=30.0) == [True]


@pytest.mark.parametrize(
    "answer",
    [
        "1e999999999",
        "-1e999999999",
        "1e-999999999",
        "1e" + "9" * 50,
        "10^{10^9}",
        "9**9**9",
        "9^{9^9}",
        "2^{2^{30}}",
        "1000000!",
        "(10^6)!",
        "9" * 100_000,
        "0." + "1" * 100_000,
        "1" * 5000 + "/" + "3" * 5000,
        "1/10^{10^9}",
        "10^{-10^9}",
        "0.\\overline{" + "3" * 3000 + "}",
        "(" * 500 + "1" + ")" * 500,
        "-" * 3000 + "1",
        "{" * 900,
        "\\frac" * 900,
        "\\frac{" * 900,
        "1,000" * 300,
        "½" * 500,
        "1 " * 900,
        "1+" * 900,
        "\\sqrt{" * 500,
        "1:" * 500,
        "3 hours " * 200,
        "\\text{" * 300,
        "^2" * 500,
        "million " * 200,
        "5 million" + " million" * 100,
        "<" * 2000,
        "x=" * 900,
        "not " * 400,
        "\\frac{" * 200 + "1}2" * 200,
        "[1," * 500 + "1]" * 500,
        "x<" * 900,
        "1 or " * 400,
    ],
    ids=lambda answer: answer[:20],
)
def test_arithmetic_is_bounded(answer):
    """No answer takes long before a worker sees it, which has a time limit."""
    assert quick_verdict("42", answer) is not True
    assert quick_verdict(answer, "42") is not True
    assert takes_less_than(1, quick_verdict, "42", answer)
    assert takes_less_than(1, quick_verdict, answer, "42")
    assert takes_less_than(1, lambda: plain_number(tidy(answer)))


@given(
    st.lists(st.sampled_from(TOKENS), max_size=12).map("".join),
    st.lists(st.sampled_from(TOKENS), max_size=6).map("".join),
)
def test_any_writing(one, other):
    """Nothing raises, writing is settled at once, and an answer equals itself."""
    assert tidy(tidy(one)) is not None and quick_verdict(one, other) in (True, False, None)
    assert not one.strip() or quick_verdict(one, one) is not False


def test_huge_numbers_are_told_apart_without_being_computed():
    golds = ["1e999999999", "1e999999999", "10^{10^9}", "42", "0", "9**9**9"]
    answers = ["10e999999998", "1e999999998", "10^{10^8}", "10^{10^9}", "10^{-10^9}", "42"]
    assert [quick_verdict(*pair) for pair in zip(golds, answers, strict=True)] == [True] + [False] * 5
    assert exact_value("10^{10^9}") == Huge(1, 1e9) and exact_value("-(2^3)!") == -40320


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1 1/2", Fraction(3, 2), ""),
        (r"0.1\overline{6}", Fraction(1, 6), ""),
        (r"\$70{,}000", 70000, "$"),
        ("5 million dollars", 5_000_000, "dollars"),
        ("−½ cm", Fraction(-1, 2), "cm"),
        ("6.02×10²³", 602 * 10**21, ""),
        ("two dozen", 24, ""),
        ("3 hours 30 minutes", 210, "minutes"),
        (r"\frac{3}{4}\text{ inch}", Fraction(3, 4), "inch"),
    ],
)
def test_quantities(text, value, unit):
    quantity = read_quantity(tidy(text))
    assert (quantity.value, quantity.unit) == (value, unit)


@pytest.mark.parametrize(
    "text", ["1,2,3", "1 2", "x", "2516_8", "", "-", "1/0", "0^{-1}", "(1,2)", "3:45", "1.2.3", "a1"]
)
def test_no_quantity(text):
    assert read_quantity(tidy(text)) is None


def test_a_gold_answer_that_cannot_be_read_is_not_judged():
    assert answers_equal([r"\frac{1}{"], ["5"]) == [None]
