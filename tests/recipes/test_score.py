"""The SCoRe recipe as a user runs it: what it leaves behind, its baselines, and its messages."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from correction_trl.recipe import run


pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs" / "score"
KEYS = {"acc@t1", "acc@t2", "delta(t1,t2)", "delta(i->c)", "delta(c->i)", "edit_distance_ratio", "answer_changed"}


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_score", ROOT / "recipes" / "score.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def launch(recipe, tmp_path, monkeypatch):
    """The recipe with a few small settings; returns its output folder."""
    monkeypatch.chdir(tmp_path)

    def launch(arguments):
        small = "--max_steps 2 --per_device_train_batch_size 16 --test_rows 24 --train_rows 64 --disable_tqdm true"
        run(recipe.main, *recipe.parse_arguments([*small.split(), "--output_dir", "out", *arguments.split()]))
        return tmp_path / "out"

    return launch


def test_no_arguments_leave_model_metrics_card_and_pictures(launch, capsys):
    out = launch("--logging_steps 1")
    files = {"metrics.json", "README.md", "learning_curves.png", "before_after.png", "model.safetensors"}
    assert files <= {path.name for path in out.iterdir()}
    metrics = json.loads((out / "metrics.json").read_text())
    assert KEYS | {f"{key}/sampled" for key in KEYS} <= metrics["before"].keys() == metrics["after"].keys()
    for summary in metrics["after"].values():
        assert summary["low"] <= summary["mean"] <= summary["high"] or summary["n"] < 2
    for when in ("before", "after"):
        mean = {key: metrics[when][key]["mean"] for key in KEYS}
        assert mean["delta(t1,t2)"] == pytest.approx(mean["delta(i->c)"] - mean["delta(c->i)"])
        assert mean["delta(t1,t2)"] == pytest.approx(mean["acc@t2"] - mean["acc@t1"])
    assert metrics["difference"]["acc@t2"]["n"] == 24 and metrics["config"]["alpha"] == 10.0
    card = ModelCard.load(out / "README.md")
    assert "2409.12917" in card.content and "score" in card.data.tags
    assert str(out.parent) not in card.content
    AutoModelForCausalLM.from_pretrained(out)
    assert "acc@t2" in capsys.readouterr().out


@pytest.mark.parametrize("baseline", ["single_turn", "without_stage_1", "without_bonus"])
def test_baselines_are_settings(launch, baseline):
    out = launch(f"--config {CONFIGS / baseline}.yaml --output_dir out --max_steps 2")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["before"].keys() == metrics["after"].keys() >= KEYS
    config = metrics["config"]
    assert {
        "single_turn": config["turns"] == 1 and config["stage"] == "2",
        "without_stage_1": config["turns"] == 2 and config["stage"] == "2",
        "without_bonus": config["alpha"] == 0.0 and config["stage"] == "both",
    }[baseline]


def test_lora_adapter(launch):
    out = launch("--use_peft true --lora_target_modules all-linear --lora_r 4")
    assert (out / "adapter_model.safetensors").is_file() and not (out / "ref").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset_name missing.jsonl --reward_funcs correction_trl.carry_addition:exact_match", "no such dataset"),
        ("--reward_funcs nowhere:function", "nowhere"),
        ("--resume_from_checkpoint nowhere", "cannot be resumed from: there is no such folder"),
        ("--alpah 3", "alpah"),
        ("--stage 4", "stage"),
        (
            "--eval_strategy steps --dataset_name {file} --reward_funcs correction_trl.carry_addition:exact_match",
            "eval_strategy",
        ),
        ("--dataset_name {file}", "`reward_funcs` is not set"),
        ("--dataset_name {empty} --reward_funcs correction_trl.carry_addition:exact_match", "empty"),
    ],
)
def test_bad_input_is_one_sentence(launch, tmp_path, arguments, message):
    (tmp_path / "data.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(SystemExit, match=message) as error:
        launch(arguments.format(file=tmp_path / "data.jsonl", empty=tmp_path / "empty.jsonl"))
    assert "\n" not in str(error.value).strip()


def test_one_row_is_enough(launch, tmp_path):
    (tmp_path / "data.jsonl").write_text(
        '{"prompt": [{"role": "user", "content": "000000000001+000000000001="}], "answer": "0000000000002"}\n'
    )
    out = launch(
        f"--dataset_name {tmp_path / 'data.jsonl'} --reward_funcs correction_trl.carry_addition:exact_match"
        " --max_steps 2 --num_generations 4 --per_device_train_batch_size 4"
    )
    assert json.loads((out / "metrics.json").read_text())["after"] == {}
