import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from transformers import TrainingArguments

from correction_trl.data_utils import public_name
from correction_trl.errors import BadInput, TeacherFailed
from correction_trl.recipe import as_dict, parse, run


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


@pytest.mark.parametrize("name", ["min_p", "repetition_penalty"])
def test_a_setting_that_is_gone_names_what_takes_its_place(quickstart, tmp_path, name):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{name}: 1.1\n")
    for argv in (["--config", str(file)], [f"--{name}", "1.1"]):
        with pytest.raises(SystemExit, match=f"{name}.* is gone: set `generation_kwargs: .{name}: "):
            parse((Task, Model), quickstart, argv)


def test_replay_where_there_is_none_says_where_it_is(quickstart):
    with pytest.raises(SystemExit, match="`--replay_share` is unknown here: replay is a part of correction optim"):
        parse((Task, Model), quickstart, ["--replay_share", "0.1"])


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
