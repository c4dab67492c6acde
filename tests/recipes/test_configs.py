"""Every configuration file that a user is offered is read by the program that it is for."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from helpers import make_args
from trl import ModelConfig

from correction_trl import CorrectionOptimizationConfig


RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = sorted((RECIPES / "configs").glob("*/*.yaml"))
ACCELERATE_CONFIGS = sorted((RECIPES / "accelerate_configs").glob("*.yaml"))


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@cache
def recipe(stem: str):
    spec = importlib.util.spec_from_file_location(f"recipe_{stem}", RECIPES / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def bfloat16_on_a_cpu(monkeypatch):
    """GPU configurations are read on machines without one."""
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda *_, **__: True)


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_its_recipe_reads_it(path):
    settings = yaml.safe_load(path.read_text())
    parsed = recipe(path.parent.name).parse_arguments(["--config", str(path)])
    values = {key: value for part in parsed for key, value in vars(part).items()}
    assert set(settings) <= set(values)
    for key in set(settings) & {
        "loss_type",
        "beta",
        "nll_weight",
        "learning_rate",
        "max_steps",
        "dtype",
        "seed",
        "lora_r",
    }:
        assert values[key] == settings[key], key


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_it_is_in_sections_and_says_what_it_is_for(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and len(lines[0]) > 40
    sections = [line for before, line in zip(lines, lines[1:], strict=False) if not before and line.startswith("# ")]
    assert len(sections) >= 3
    keys = re.findall(r"^(\w+):", path.read_text(), flags=re.MULTILINE)
    assert len(keys) == len(set(keys)), "a key is given twice"


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_it_runs_on_a_cpu_in_float32_or_on_a_gpu_in_bfloat16(path):
    settings = yaml.safe_load(path.read_text())
    if settings.get("model_name_or_path"):  # a model of the Hub: for a GPU. TRL's default dtype is float32.
        assert settings["dtype"] == "bfloat16"
        assert settings.get("bf16", True) is not settings.get("use_cpu", False)
    else:
        assert settings.get("dtype", "float32") == "float32"
        if path.parent.name not in ("collect_corrections", "correct", "evaluate"):  # which train nothing
            assert settings["bf16"] is False


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if yaml.safe_load(path.read_text()).get("load_in_4bit")], ids=name
)
def test_a_qlora_config_trains_an_adapter(path):
    settings = yaml.safe_load(path.read_text())
    assert settings["use_peft"] is True
    assert settings.get("gradient_checkpointing", True) is True
    assert settings.get("lora_target_modules") is not None


def test_a_configuration_for_a_gpu_and_the_quickstart_are_there():
    files = {path.stem for path in CONFIGS if path.parent.name == "correction_optimization"}
    assert "quickstart" in files
    assert [file for file in files if file.startswith("qlora")]


@pytest.mark.parametrize("stem", sorted({path.parent.name for path in CONFIGS}))
def test_a_recipe_refuses_what_it_does_not_know(stem, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("learning_rat: 0.1\n")
    with pytest.raises(SystemExit, match="learning_rat"):
        recipe(stem).parse_arguments(["--config", str(file)])
    with pytest.raises(SystemExit, match="learning_rte"):
        recipe(stem).parse_arguments(["--learning_rte", "0.1"])


@pytest.mark.parametrize("stem", sorted({path.parent.name for path in CONFIGS}))
def test_a_recipe_without_arguments_reads_its_quickstart(stem, monkeypatch):
    quickstart = RECIPES / "configs" / stem / "quickstart.yaml"
    monkeypatch.setattr("sys.argv", [f"{stem}.py"])
    parsed = recipe(stem).parse_arguments()
    values = {key: value for part in parsed for key, value in vars(part).items()}
    settings = yaml.safe_load(quickstart.read_text())
    compared = settings.keys() & {"output_dir", "max_completion_length", "seed", "batch_size", "temperature"}
    assert len(compared) >= 2 and all(values[key] == settings[key] for key in compared)


@pytest.mark.parametrize("path", ACCELERATE_CONFIGS, ids=name)
def test_accelerate_reads_it(path):
    config = load_config_from_file(str(path))  # unknown keys are an error
    assert config.mixed_precision == ("no" if "cpu" in path.stem else "bf16")
    command = launch_command_parser().parse_args(["--config_file", str(path), "recipe.py"])
    assert command.config_file == str(path)
    settings = yaml.safe_load(path.read_text())
    if config.distributed_type == "DEEPSPEED":
        assert settings["deepspeed_config"]["zero_stage"] in (2, 3)
    if config.distributed_type == "FSDP":
        assert settings["fsdp_config"]["fsdp_version"] == 2
    if config.distributed_type in ("DEEPSPEED", "FSDP", "MULTI_GPU"):
        assert config.num_processes > 1


def test_settings_of_the_model_and_of_the_trainer_do_not_hide_each_other(tmp_path):
    args = vars(CorrectionOptimizationConfig(**make_args(tmp_path)))
    assert not set(args) & set(vars(ModelConfig()))
