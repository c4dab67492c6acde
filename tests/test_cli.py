"""`correction-trl`: recipes and configs by name, accelerate's arguments to accelerate."""

import subprocess
import sys

import pytest
from helpers import ROOT

from correction_trl.cli import main, split_arguments
from correction_trl.recipe import parse


def test_arguments_go_where_they_are_known():
    ours = ["--config", "qlora_24gb", "--max_steps", "3", "--lora_target_modules", "q_proj", "v_proj", "--use_cpu"]
    theirs = ["--num_processes", "2", "--config_file=x.yaml", "--main_process_port", "0"]
    assert split_arguments([*ours[:2], *theirs[:2], *ours[2:], *theirs[2:]]) == (theirs, ours)
    assert split_arguments(["first", "--num_processes", "2"]) == (["--num_processes", "2"], ["first"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["scoer"], "no recipe `scoer`; did you mean `score`"),
        (["train"], "no recipe `train`. The recipes: collect_corrections, correct, correction_optimization"),
        (["configs"], "no recipe `configs`"),
    ],
)
def test_a_recipe_that_is_not_there(argv, message):
    with pytest.raises(SystemExit, match=message):
        main(argv)


def test_help_names_recipes_and_configs(capsys):
    main([])
    shown = capsys.readouterr().out
    for name in ("score", "correct", "evaluate", "qlora_24gb", "self_correction_dpo"):
        assert name in shown


def test_a_shipped_config_is_found_by_name(tmp_path, monkeypatch):
    from trl import ModelConfig

    quickstart = ROOT / "recipes" / "configs" / "score" / "quickstart.yaml"
    with pytest.raises(SystemExit, match="single_turn.yaml: `stage` is unknown"):  # it was read
        parse((ModelConfig,), quickstart, ["--config", "single_turn"])
    with pytest.raises(SystemExit, match="no such file"):
        parse((ModelConfig,), quickstart, ["--config", "single_trun"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "single_turn").write_text("lora_r: 3\nmodel_name_or_path: x\n")  # one's own goes first
    assert parse((ModelConfig,), quickstart, ["--config", "single_turn"])[0].lora_r == 3


@pytest.mark.slow
def test_a_recipe_runs_by_its_name(tmp_path):
    command = [sys.executable, "-c", "from correction_trl.cli import main; main()", "evaluate", "--cpu"]
    command += ["--num_processes", "1", "--test_rows", "8", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "out" / "metrics.json").is_file()
