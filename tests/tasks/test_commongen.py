"""CommonGen's pack, on the real file."""

from pathlib import Path

import pytest
from datasets import Dataset

from correction_trl.data_utils import load_split
from correction_trl.errors import BadInput
from correction_trl.tasks import commongen


FILE = Path(__file__).parents[3] / "shared" / "data" / "commongen" / "commongen.dev.jsonl"
needs_data = pytest.mark.skipif(not FILE.exists(), reason="the CommonGen file is not on this machine")


@needs_data
def test_people_cover_the_words_and_shifted_people_do_not():
    rows = load_split(str(FILE), None, "train", data_function=commongen.problems)
    assert len(rows) == 992 and set(rows.column_names) == {"prompt", "concepts", "references"}
    assert rows[0]["prompt"][0]["content"].endswith("form: field, look, stand.")
    pairs = [(row["concepts"], told) for row in rows for told in row["references"]]
    concepts, told = (list(column) for column in zip(*pairs, strict=True))
    right = commongen.coverage(completions=told, concepts=concepts)
    wrong = commongen.coverage(completions=told[1000:] + told[:1000], concepts=concepts)
    assert len(right) == 4018 and sum(value == 1.0 for value in right) >= 4000
    assert sum(value == 1.0 for value in wrong) == 0
    assert "Missing words: look" in commongen.missing(completions=["A stand in a field."], concepts=[concepts[0]])[0]


def test_the_form_of_the_hub_is_one_row_per_set_of_words():
    published = Dataset.from_list(
        [
            {"concept_set_idx": 0, "concepts": ["ski", "skier"], "target": "A skier skis."},
            {"concept_set_idx": 0, "concepts": ["ski", "skier"], "target": "Skiers ski."},
            {"concept_set_idx": 1, "concepts": ["dog", "run"], "target": ""},
        ]
    )
    rows = commongen.problems(published)
    assert [row["references"] for row in rows] == [["A skier skis.", "Skiers ski."], []]


def test_another_file_is_a_sentence_that_names_its_columns(tmp_path):
    file = tmp_path / "others.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    with pytest.raises(BadInput, match="no data of CommonGen: the columns are question, answer, and concepts, target"):
        load_split(str(file), None, "train", data_function=commongen.problems)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda dataset: dataset["nothing"], "raised ValueError on others.jsonl, whose columns are question"),
        (lambda dataset: None, "returned NoneType; it must return a `datasets.Dataset`"),
    ],
)
def test_a_data_function_that_fails_is_a_sentence(function, sentence, tmp_path):
    file = tmp_path / "others.jsonl"
    file.write_text('{"question": "1 + 1?"}\n')
    with pytest.raises(BadInput, match=sentence):
        load_split(str(file), None, "train", data_function=function)


def test_the_columns_of_the_table():
    samples = [["The dog runs.", "A dog."], ["Cats sleep."]]
    found = commongen.table(["p", "q"], samples, concepts=[["dog", "run"], ["cat", "sleep"]])
    assert found == {"coverage": [0.75, 1.0], "all_covered": [0.5, 1.0]}
