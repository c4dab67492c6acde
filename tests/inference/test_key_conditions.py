"""Masks of key conditions: a number's value is what the words say, and the question can always be put back."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.errors import BadInput
from correction_trl.inference.key_conditions import (
    KINDS,
    find_concepts,
    find_entities,
    find_numbers,
    key_condition,
    last_number,
    locate,
    rank_numbers,
)


DATA = Path(__file__).parents[3] / "shared" / "data"


def in_words(number: int) -> str:
    """English for a whole number, written another way round than the module reads it."""
    small = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen"
    ).split()
    if number < 20:
        return small[number]
    if number < 100:
        tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()[number // 10 - 2]
        return tens if number % 10 == 0 else f"{tens}-{small[number % 10]}"
    for size, name in ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            head, rest = divmod(number, size)
            joint = " and " if size == 100 or rest < 100 else " "
            return f"{in_words(head)} {name}" + (f"{joint}{in_words(rest)}" if rest else "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She paid $1,234.50 and 20% of it", [("1,234.50", "1234.5"), ("20", "20")]),
        ("It cost Rs.450, $ 12.14 and $.40", [("450", "450"), ("12.14", "12.14"), (".40", "0.4")]),
        ("2 1/2 cups and 1/2 cup", [("2 1/2", "5/2"), ("1/2", "1/2")]),
        ("five of 5. Then 7.", [("five", "5"), ("5", "5"), ("7", "7")]),
        ("a dozen, two dozen, half a dozen", [("a dozen", "12"), ("two dozen", "24"), ("half a dozen", "6")]),
        ("two thirds of it, a quarter, half", [("two thirds", "2/3"), ("a quarter", "1/4"), ("half", "1/2")]),
        ("3.5 million and 5 thousand", [("3.5 million", "3500000"), ("5 thousand", "5000")]),
        ("a 15-year-old in 1990", [("15", "15"), ("1990", "1990")]),
        ("twice as much, -5 degrees", [("twice", "2"), ("-5", "-5")]),
        ("a hundred and one", [("a hundred and one", "101")]),
        # No quantity: ordinals, dates, times, ranges, names, exponents, pronouns
        ("on the 1st and 2nd of 12/05/1999 at 7:30", []),
        ("5-10 people, B12, AK-47, the 1990s, x^2", []),
        ("which one does one another give one day", []),
        ("a third friend", []),
    ],
)
def test_numbers_of_a_text(text, expected):
    found = find_numbers(text)
    assert [text[slice(*number.span)] for number in found] == [words for words, _ in expected]
    assert [number.value for number in found] == [Fraction(value) for _, value in expected]


@given(st.one_of(st.integers(0, 10**4), st.integers(0, 10**12 - 1)))
def test_a_number_in_words_has_its_value(number):
    text = f"There were {in_words(number)} apples."
    if number == 1:
        text = "There was one apple."
    (found,) = find_numbers(text)
    assert found.value == number
    assert text[slice(*found.span)] == in_words(number)


@given(st.integers(0, 10**9), st.sampled_from(["{}", "{:,}", "${:,}", "{}%", "({})", "{} cm", "{}-year"]))
def test_a_number_in_digits_has_its_value(number, form):
    (found,) = find_numbers(f"There were {form.format(number)} of them.")
    assert found.value == number


@given(st.decimals(0, 10**6, places=2))
def test_money_has_its_value(amount):
    (found,) = find_numbers(f"It cost ${amount:,}.")
    assert found.value == Fraction(amount)


@given(
    st.lists(
        st.one_of(
            st.integers(0, 10**6).map(str),
            st.sampled_from(["five", "half", "Paris", "[X]", "of", "'s", "\n", "“A b”"]),
            st.text(max_size=8),
        ),
        max_size=12,
    ),
    st.sampled_from(KINDS),
)
def test_any_question_is_restored_from_its_record(words, kind):
    question = " ".join(words)
    condition = key_condition(question, kind)
    if condition is not None:
        assert condition.question == question
        assert condition.masked_question != question and condition.mask in condition.masked_question
        assert all(text for _, text in condition.replaced)
        if kind == "number":
            ((start, text),) = condition.replaced
            # Behind the mask lies what the value says
            assert condition.number in [number.value for number in find_numbers(text)]


@pytest.mark.parametrize("name", ["addsub", "multiarith"])
def test_real_word_problems_have_a_mask(name):
    file = DATA / "mawps" / f"{name}.jsonl"
    if not file.is_file():
        pytest.skip("the MAWPS problems are not here (../shared/data/mawps)")
    questions = [json.loads(line)["input"] for line in file.read_text().splitlines()]
    conditions = [key_condition(question, "number") for question in questions]
    assert sum(condition is not None for condition in conditions) >= 0.99 * len(questions)
    for question, condition in zip(questions, conditions, strict=True):
        if condition is not None:
            assert condition.question == question
            assert condition.number == last_number(condition.text)


def test_the_number_that_the_question_is_about_is_masked():
    question = (
        "In 2019 Tom walked 3 miles twice a day. He owns 17 shirts and 4 ties. How many shirts and ties are his?"
    )
    ranked = [question[slice(*number.span)] for number in rank_numbers(question)]
    assert ranked == ["17", "4", "3", "2019", "twice"]
    # A condition inside the sentence that asks comes before what is asked
    condition = key_condition("If 2 pens cost 6 dollars, how much do 5 pens cost?", "number")
    assert condition.value == "2"


def test_an_entity_is_masked_wherever_it_stands():
    condition = key_condition(
        "Is Paris older than its people say, and is paris by the Seine the real Paris?", "entity"
    )
    assert condition.masked_question == "Is [X] older than its people say, and is [X] by the Seine the real [X]?"
    assert condition.question == "Is Paris older than its people say, and is paris by the Seine the real Paris?"


@pytest.mark.parametrize(
    ("question", "entities"),
    [
        ("What is the capital of France?", ["France"]),
        ('Who wrote the novel "Pride and Prejudice"?', ["Pride and Prejudice"]),
        ("When did the United States enter World War II?", ["World War II", "United States"]),
        ("In which year did Michael Jordan retire from the NBA?", ["NBA", "Michael Jordan"]),
        ("Who was president in 1990?", ["1990"]),
        ("who sings i will always love you", []),
    ],
)
def test_entities_of_a_question(question, entities):
    assert find_entities(question) == entities


@pytest.mark.parametrize(
    ("question", "concept"),
    [
        ("Where would you find a jellyfish that has not been captured?", "jellyfish"),
        ("What do people use to absorb extra ink from a fountain pen?", "fountain pen"),
    ],
)
def test_a_concept_of_a_question(question, concept):
    assert find_concepts(question)[0] == concept
    assert key_condition(question, "concept").text == concept


def test_a_question_without_names_is_masked_by_a_concept():
    condition = key_condition("who sings i will always love you", "entity")
    assert condition.masked_question == "who sings i will [X] you"
    assert key_condition("what is it that you would do with these", "entity") is None
    assert (
        key_condition("is snake_case, or ok", "concept").masked_question == "is snake_case, or [X]"
    )  # no part of a word


@pytest.mark.parametrize(
    ("phrase", "masked"),
    [
        ("Eiffel Tower", "Who designed the [X] in Paris?"),
        ("eiffel tower.", "Who designed the [X] in Paris?"),
        ("Eifel Towr", "Who designed the [X] in Paris?"),
        ("(Paris)", "Who designed the Eiffel Tower in [X]?"),
        ("Colosseum", None),
        ("", None),
    ],
)
def test_a_phrase_that_a_model_named_is_found(phrase, masked):
    condition = locate("Who designed the Eiffel Tower in Paris?", phrase)
    assert (condition and condition.masked_question) == masked


def test_a_number_that_a_model_named_is_found_by_its_value():
    condition = locate("She had three dozen eggs and 7 left.", "36 eggs", kind="number")
    assert condition.masked_question == "She had [X] eggs and 7 left." and condition.value == "36"
    assert locate("She had three dozen eggs and 7 left.", "8", kind="number") is None


def test_a_question_with_an_x_of_its_own_gets_another_mask():
    condition = key_condition("If [X] + 5 = 7, what is [X]?", "number")
    assert condition.mask == "[Y]" and condition.question == "If [X] + 5 = 7, what is [X]?"
    assert key_condition("If Z + 5 = 7, what is Z?", "number", mask="X").masked_question == "If Z + X = 7, what is Z?"
    crowded = key_condition("Of [X], [Y], [Z] and [X1], which is 3?", "number")
    assert crowded.mask == "[X2]" and crowded.question == "Of [X], [Y], [Z] and [X1], which is 3?"


def test_an_unknown_kind_is_refused():
    with pytest.raises(BadInput, match="number, entity, concept"):
        key_condition("1 + 1", "verb")


@pytest.mark.parametrize(
    ("text", "number"), [("[X] refers to: 12 apples.", 12), ("x=3", 3), ("so x = 1,000.", 1000), ("none", None)]
)
def test_the_last_number_of_a_reply(text, number):
    assert last_number(text) == number
