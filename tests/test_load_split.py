"""Where data come from: a Hub id, a folder or a file, one sentence about what cannot be read."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from correction_trl.carry_addition import embedded_path
from correction_trl.data_utils import load_split
from correction_trl.errors import BadInput
from correction_trl.recipe import ScriptArguments


ROWS = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(5)]


def write(path: Path) -> str:
    dataset = Dataset.from_list(ROWS)
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif path.suffix == ".csv":
        dataset.to_csv(path)
    else:
        dataset.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv", "data.parquet"])
def test_a_file_is_one_split_whatever_is_asked_for(tmp_path, name):
    dataset = load_split(write(tmp_path / name), None, "test")
    assert [str(row["answer"]) for row in dataset] == [row["answer"] for row in ROWS]
    assert dataset["prompt"][:] == [row["prompt"] for row in ROWS]


def test_a_folder_has_its_splits(tmp_path):
    write(tmp_path / "folder" / "train.parquet")
    Dataset.from_list(ROWS[:2]).to_parquet(tmp_path / "folder" / "test.parquet")
    folder = str(tmp_path / "folder")
    assert len(load_split(folder, None, "train")) == 5
    assert len(load_split(folder, None, "test")) == 2
    with pytest.raises(BadInput, match="has no split 'validation'; it has train, test"):
        load_split(folder, None, "validation")


def test_the_embedded_dataset_has_its_splits():
    splits = {
        split: load_split(embedded_path("carry_addition"), None, split) for split in ("train", "validation", "test")
    }
    prompts = {split: set(map(str, dataset["prompt"][:])) for split, dataset in splits.items()}
    assert len(prompts["test"]) == len(splits["test"]) >= 2000
    assert not prompts["test"] & prompts["train"] and not prompts["test"] & prompts["validation"]
    assert not prompts["train"] & prompts["validation"]


@pytest.mark.parametrize(("asked", "found"), [(3, 3), (5, 5), (99, 5), (None, 5)])
def test_the_first_rows_can_be_asked_for(tmp_path, asked, found):
    dataset = load_split(write(tmp_path / "data.jsonl"), None, "train", max_rows=asked)
    assert dataset["answer"][:] == [row["answer"] for row in ROWS[:found]]


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json", "empty.csv", "empty.parquet"])
def test_an_empty_file_is_named(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(BadInput, match=f"{name}: the file is empty"):
        load_split(str(tmp_path / name), None, "train")


@pytest.mark.parametrize(
    ("name", "content"),
    [("broken.jsonl", b'{"prompt": "1+1="\n{"pro'), ("broken.parquet", b"PAR1 is not all there is to it")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=name):
        load_split(str(tmp_path / name), None, "train")


def test_an_unknown_kind_of_file_is_named(tmp_path):
    (tmp_path / "data.xlsx").write_text("x")
    with pytest.raises(BadInput, match=r"data.xlsx: unknown kind of file; .jsonl, .json, .csv"):
        load_split(str(tmp_path / "data.xlsx"), None, "train")


@pytest.mark.parametrize("name", ["./no/such/folder", "nobody/no-such-dataset"])
def test_a_dataset_that_is_not_there_is_named(name):
    with pytest.raises(BadInput, match=name):
        load_split(name, None, "train")


def test_a_folder_written_by_save_to_disk_is_read(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    dataset = load_split(str(tmp_path / "saved"), None, "train")
    assert dataset.to_list() == ROWS


def test_a_recipe_prepares_what_it_loads(tmp_path):
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wt") as out:
        out.write('{"question": "1 + 1?", "answer": "2"}\n' * 3)
    args = ScriptArguments(
        dataset_name=str(file),
        data_function="correction_trl.tasks.math_programs:problems",
        prompt_template="Solve: {question}",
    )
    rows = args.load(str(file), "train", 2)
    assert rows["prompt"][1] == [{"role": "user", "content": "Solve: 1 + 1?"}] and len(rows) == 2
    rows = ScriptArguments(test_data_function=args.data_function).load(str(file), "train", None, "test_data_function")
    assert rows["question"][0] == "1 + 1?" and len(rows) == 3
    with pytest.raises(BadInput, match="`data_function=.*has no 'nothing'"):
        ScriptArguments(data_function="correction_trl.tasks.commongen:nothing").load(str(file), "train")
