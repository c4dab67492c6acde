"""SCL's pack: each published form of a question with choices, and AQuA's file."""

import re
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from correction_trl.data_utils import load_split
from correction_trl.errors import BadInput
from correction_trl.tasks import multiple_choice


FILE = Path(__file__).parents[3] / "shared" / "data" / "aqua" / "test.json"


@pytest.mark.skipif(not FILE.exists(), reason="the AQuA file is not on this machine")
def test_aqua_s_choices_are_right_and_others_are_not():
    rows = load_split(str(FILE), None, "test", data_function=multiple_choice.problems)
    assert len(rows) == 254 and set(rows["answer"]) == set("ABCDE")
    assert re.search(r"\nA\. .*\nB\. .*\nE\. ", rows[0]["prompt"][0]["content"], re.DOTALL)
    said = [f"So it must be that one. ## {letter} ##" for letter in rows["answer"]]
    other = [f"Not ## {letter} ##, but ##{'ABCDE'['ABCDE'.index(letter) - 1]}##" for letter in rows["answer"]]
    assert multiple_choice.accuracy(completions=said, answer=rows["answer"]) == [1.0] * 254
    assert multiple_choice.accuracy(completions=other, answer=rows["answer"]) == [0.0] * 254


FORMS = {
    "ScienceQA": {"question": "Which?", "hint": "Look.", "choices": ["cat", "dog"], "answer": 1},
    "SEED-Bench": {"question": "Which?", **{f"choice_{c}": f"{c}{c}" for c in "abcd"}, "answer": "B"},
    "MMBench": {"question": "Which?", "hint": None, "A": "cat", "B": "dog", "C": None, "D": "nan", "answer": "B"},
    "MMStar": {"question": "Which?\nOptions: A: cat, B: dog", "answer": "B"},
    "AQuA": {"question": "Which?", "options": ["A)cat", "B) dog"], "correct": "B"},
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_with_an_image(name):
    images = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    first = FORMS[name] | {"answer" if "answer" in FORMS[name] else "correct": ""}  # without a right answer
    rows = [first | {"answer": None} if name == "ScienceQA" else first, FORMS[name]]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    if name != "AQuA":
        columns["image"] = [[image] * 2 for image in images] if name == "SEED-Bench" else images
    published = Dataset.from_dict(columns)
    rows = multiple_choice.problems(published)
    assert len(rows) == 1 and rows[0]["answer"] == "B"
    asked = rows[0]["prompt"][0]["content"]
    assert asked.startswith("Which?")  # without the hint
    assert asked.endswith("like ## A ## (if your final answer is A), at the end of your response.")
    if name != "AQuA":
        assert rows[0]["image"].getpixel((0, 0)) == (0, 0, 255)
    if name in ("ScienceQA", "MMBench", "AQuA"):
        assert "Which?\nA. cat\nB. dog Explain" in asked


def test_what_is_read_as_the_choice():
    assert multiple_choice.answer("A or B? ## A ## ... no: ## (B) ##") == "B"
    assert multiple_choice.answer("## Step 1 ##\n## **(c).** ##") == "C"
    assert multiple_choice.answer("## A\n\n## B ##") == "B" and multiple_choice.answer("## Heading\nB") is None
    assert multiple_choice.answer("<think>## A ##</think> It is B.") is None
    assert multiple_choice.accuracy(completions=["It is B."], answer=["B"]) == [0.0]  # as in the paper
    reviews = {multiple_choice.REVIEW, multiple_choice.REVIEW_DETAILS, multiple_choice.REVIEW_CONTEXT}
    assert len(reviews | {multiple_choice.REVIEW_SCENE}) == 4
    with pytest.raises(BadInput, match="no data of a multiple choice: the columns are question, answer, and"):
        multiple_choice.problems(Dataset.from_dict({"question": ["1 + 1?"], "answer": ["2"]}))


def test_words_and_numbers_are_answers_where_nothing_is_listed():
    image = Image.new("RGB", (4, 4))
    published = {
        "question": ["How many? Answer with a number.", "Is it?"],
        "answer": ["3", "Yes"],
        "image": [image] * 2,
    }
    rows = multiple_choice.problems(Dataset.from_dict(published))
    assert list(rows["answer"]) == ["3", "YES"]
    assert multiple_choice.accuracy(completions=["## 3 ##", "## yes ##"], answer=rows["answer"]) == [1.0, 1.0]


def test_a_split_without_answers_is_a_sentence():
    published = {
        "question": ["Which?"],
        "choices": [["cat", "dog"]],
        "answer": [None],
        "image": [Image.new("RGB", (4, 4))],
    }
    with pytest.raises(BadInput, match="no row has a right answer"):
        multiple_choice.problems(Dataset.from_dict(published))
