import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from transformers import TrainingArguments

from correction_trl.carry_addition import embedded_path
from correction_trl.errors import BadInput, TeacherFailed
from correction_trl.recipe import as_dict, load_split, parse, public_name, run


ROWS = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(5)]


# ---------------------------------------------------------------- parse


@dataclass
class Task:
    teacher: str | None = field(default=None)
    rows: int = field(default=1)


@dataclass
class Model:
    model_name_or_path: str | None = field(default=None)
    beta: float = field(default=0.1)


@pytest.fixture
def quickstart(tmp_path) -> Path:
    file = tmp_path / "quickstart.yaml"
    file.write_text("rows: 7  # a comment\nbeta: 0.5\n")
    return file


def test_without_arguments_the_quickstart_is_read(quickstart, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    task, model = parse((Task, Model), quickstart)
    assert (task, model) == (Task(rows=7), Model(beta=0.5))


def test_the_command_line_overrides_the_file(quickstart):
    task, model = parse((Task, Model), quickstart, ["--rows", "9"])
    assert (task.rows, model.beta) == (9, 0.5)


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_a_config_replaces_the_quickstart(quickstart, tmp_path, form):
    file = tmp_path / "mine.yaml"
    file.write_text("rows: 3\n")
    task, model = parse((Task, Model), quickstart, form.format(file).split())
    assert (task.rows, model.beta) == (3, 0.1)


@pytest.mark.parametrize("form", ["--model_name_or_path my/model", "--model_name_or_path=my/model"])
def test_with_a_model_of_ones_own_the_quickstart_is_not_read(quickstart, form):
    task, model = parse((Task, Model), quickstart, form.split())
    assert (task.rows, model) == (1, Model(model_name_or_path="my/model"))


def test_an_unknown_key_of_the_file_is_an_error_that_names_it(quickstart, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("rows: 3\nlearning_rat: 0.1\n")
    with pytest.raises(SystemExit, match="learning_rat"):
        parse((Task, Model), quickstart, ["--config", str(file)])


def test_an_unknown_argument_is_an_error_that_names_it(quickstart):
    with pytest.raises(SystemExit, match="learning_rat"):
        parse((Task, Model), quickstart, ["--learning_rat", "0.1"])


def test_a_config_that_is_not_there_is_named(quickstart, tmp_path):
    with pytest.raises(SystemExit, match="^Configuration: .*nowhere.yaml"):
        parse((Task, Model), quickstart, ["--config", str(tmp_path / "nowhere.yaml")])


def test_a_value_that_makes_no_sense_is_one_sentence(quickstart):
    @dataclass
    class Positive:
        beta: float = field(default=0.1)

        def __post_init__(self):
            if self.beta <= 0:
                raise ValueError(f"`beta={self.beta}` must be positive.")

    with pytest.raises(SystemExit) as caught:
        parse((Task, Positive), quickstart, ["--beta", "-1"])
    assert caught.value.code == "Configuration: `beta=-1.0` must be positive."


def test_a_value_of_the_wrong_type_names_the_argument(quickstart):
    with pytest.raises(SystemExit, match="--rows: invalid int value: 'many'"):
        parse((Task, Model), quickstart, ["--rows", "many"])
    with pytest.raises(SystemExit, match="--row"):  # no abbreviations
        parse((Task, Model), quickstart, ["--row", "3"])


@pytest.mark.parametrize("content", ["rows: [1\n", "rows: 3\n  beta: 1\n", "just text\n"])
def test_a_broken_config_is_one_sentence(quickstart, tmp_path, content):
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(SystemExit, match="^Configuration: .*broken.yaml"):
        parse((Task, Model), quickstart, ["--config", str(file)])


# ---------------------------------------------------------------- run


@pytest.mark.parametrize("error", [BadInput, TeacherFailed])
def test_an_error_that_is_meant_for_the_user_ends_a_recipe_with_its_sentence(error):
    def main(name):
        raise error(f"`{name}` is empty: it has no rows.")

    with pytest.raises(SystemExit) as caught:
        run(main, "train_dataset")
    assert caught.value.code == "Error: `train_dataset` is empty: it has no rows."


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


# ---------------------------------------------------------------- load_split


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
    with pytest.raises(SystemExit, match="has no split 'validation'; it has train, test"):
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
    with pytest.raises(SystemExit, match=f"{name}: the file is empty"):
        load_split(str(tmp_path / name), None, "train")


@pytest.mark.parametrize(
    ("name", "content"),
    [("broken.jsonl", b'{"prompt": "1+1="\n{"pro'), ("broken.parquet", b"PAR1 is not all there is to it")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=name):
        load_split(str(tmp_path / name), None, "train")


def test_an_unknown_kind_of_file_is_named(tmp_path):
    (tmp_path / "data.xlsx").write_text("x")
    with pytest.raises(
        SystemExit, match=r"data.xlsx: unknown kind of file; .jsonl, .json, .csv and .parquet can be read"
    ):
        load_split(str(tmp_path / "data.xlsx"), None, "train")


@pytest.mark.parametrize("name", ["./no/such/folder", "nobody/no-such-dataset"])
def test_a_dataset_that_is_not_there_is_named(name):
    with pytest.raises(SystemExit, match=name):
        load_split(name, None, "train")


def test_a_folder_written_by_save_to_disk_is_read(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    dataset = load_split(str(tmp_path / "saved"), None, "train")
    assert dataset.to_list() == ROWS


# ---------------------------------------------------------------- names and dictionaries


def test_public_name_shows_no_path_of_this_machine(tmp_path):
    (tmp_path / "my-model").mkdir()
    assert public_name(str(tmp_path / "my-model"), "model") == "my-model"
    assert public_name(f"{tmp_path / 'my-model'}/", "model") == "my-model"
    assert public_name("someone/some-model", "model") == "someone/some-model"
    assert public_name("", "model") == "model"


def test_as_dict_merges_and_keeps_tokens_out(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), hub_token="hf_secret", use_cpu=True, report_to="none")
    merged = as_dict(Task(rows=4), args)
    assert merged["rows"] == 4 and merged["output_dir"] == str(tmp_path)
    assert "hf_secret" not in json.dumps(merged, default=str)
