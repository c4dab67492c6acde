"""Short answers: SQuAD's normal form and scores, and the forms in which datasets hold right answers."""

import pytest

from correction_trl.rewards import (
    ShortAnswer,
    gold_answers,
    normalize_short_answer,
    short_answer,
    short_answer_contains,
    short_answer_exact,
    short_answer_f1,
)


def test_the_normal_form_is_that_of_squad():
    assert normalize_short_answer('  The  Beatles\' "White-Album", an LP. ') == "beatles whitealbum lp"
    assert normalize_short_answer("a.b") == "ab" and normalize_short_answer("theatre another") == "theatre another"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Paris", "Paris"),
        ("**Paris.**", "Paris"),
        ("The answer is Paris. It is the capital of France.", "Paris"),
        ("Let me think.\nThe answer to the question is: “St. Louis”.", "St. Louis"),
        ("The answer is Lyndon B. Johnson. He came after Kennedy.", "Lyndon B. Johnson"),
        ("Answer: the United States!\nExplanation: it borders both.", "the United States"),
        ("Final answer: 1841", "1841"),
        ("**Answer**: Vienna", "Vienna"),
        ("The answer is:\nVienna", "Vienna"),
        ("The answer is Rome.\nNo: the answer is Oslo.", "Oslo"),
        ("Paris\n\nFrance has had its capital there for a long time, with breaks.", "Paris"),
        ("The capital of France has been, for a long time, Paris.\nParis", "Paris"),
        ("<think>The answer is Rome.</think>Oslo", "Oslo"),
        ("", None),
        ("<think>The answer is Rome.", None),
        (" \n**\n", None),
    ],
)
def test_what_a_response_answers(response, answer):
    assert short_answer(response) == answer


@pytest.mark.parametrize(
    ("gold", "answers"),
    [
        ("Paris", ["Paris"]),
        (["Paris", "City of Light"], ["Paris", "City of Light"]),
        ({"value": "Sunset", "aliases": ["Sun Bd", "Sun St"], "type": "x"}, ["Sunset", "Sun Bd", "Sun St"]),
        ({"text": ["1066"], "answer_start": [3]}, ["1066"]),
        (None, []),
        ("  ", []),
        ([], []),
    ],
)  # fmt: skip
def test_the_forms_of_right_answers(gold, answers):
    assert gold_answers(gold) == answers


@pytest.mark.parametrize("gold", [3, [1], {"answer": "x"}])
def test_another_form_is_refused(gold):
    with pytest.raises(ValueError, match="gold answer"):
        gold_answers(gold)


def test_the_best_of_the_aliases_counts():
    gold = [["Norman Bird", "Martin Freeman", "Sir Ian Holm"]]
    for text, exact, contains, f1 in [
        ("The answer is martin freeman.", 1, 1, 1),
        ("Ian Holm", 0, 0, 2 * 2 / (2 + 3)),
        ("It was the actor Martin Freeman", 0, 1, 2 * 2 / (5 + 2)),  # "the" is no word
        ("Freemans", 0, 0, 0),
        ("", 0, 0, 0),
    ]:
        columns = {"completions": [text], "answer": gold}
        assert short_answer_exact(**columns) == [exact]
        assert short_answer_contains(**columns) == [contains]
        assert short_answer_f1(**columns) == [pytest.approx(f1)]
    assert short_answer_f1(completions=["new new york"], answer=["New York New York"]) == [pytest.approx(6 / 7)]


def test_what_has_no_right_answer_is_not_judged(caplog):
    value = ShortAnswer(gold_column="gold")
    assert value(completions=["x", "x"], gold=[None, ["The"]]) == [None, None]  # "the" is empty in the normal form
    assert "short_answer_exact could not judge 2 of 2 rows" in caplog.text
    with pytest.raises(ValueError, match="needs the dataset column 'gold'"):
        value(completions=["x"], answer=["x"])
    assert ShortAnswer().feedback(completions=["Rome", "", "Oslo", "x"], answer=["Oslo", "Oslo", "Oslo", None]) == [
        "The answer, “Rome”, is wrong.",
        "No answer was found.",
        "The answer is right.",
        "",
    ]
    with pytest.raises(ValueError, match="exact, contains, f1"):
        ShortAnswer("fuzzy")


def test_an_extractor_of_ones_own():
    value = ShortAnswer(extract=lambda text: text.split("|")[-1])
    assert value(completions=[[{"role": "assistant", "content": "no | Paris"}]], answer=["paris"]) == [1.0]
