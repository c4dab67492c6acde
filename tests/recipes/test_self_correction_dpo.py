"""The recipe as a user runs it: what it leaves behind, and what it says when something is wrong."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny_vision_models import build_llava, image_problems

from correction_trl.recipe import run


pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]
FILES = {"metrics.json", "README.md", "learning_curves.png", "before_after.png"}


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location(
        "recipe_self_correction_dpo", ROOT / "recipes" / "self_correction_dpo.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def launch(recipe, tmp_path, monkeypatch):
    """The recipe with a few small settings; returns its output folder."""
    monkeypatch.chdir(tmp_path)

    def launch(arguments, output_dir="out"):
        argv = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--test_rows", "12", "--train_rows", "100"]
        argv += ["--per_device_eval_batch_size", "100", "--output_dir", output_dir, "--disable_tqdm", "true"]
        monkeypatch.setattr(sys, "argv", ["recipes/self_correction_dpo.py", *arguments.split()])
        run(recipe.main, *recipe.parse_arguments([*argv, *arguments.split()]))
        return tmp_path / output_dir

    return launch


def test_no_arguments_leave_model_pairs_metrics_card_and_pictures(launch, capsys):
    out = launch("")
    assert FILES | {"model.safetensors", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    metrics = json.loads((out / "metrics.json").read_text())
    keys = {"acc@t1", "acc@t2", "delta(t1,t2)", "delta(i->c)", "delta(c->i)", "edit_distance_ratio", "answer_changed"}
    assert keys <= metrics["before"].keys() == metrics["after"].keys()
    assert metrics["before"]["acc@t1"]["n"] == 12
    (counts,) = metrics["rounds"]
    assert counts["transcripts"] == 100 == sum(counts[kind] for kind in ("i->c", "c->i", "c->c", "i->i"))
    pairs = Dataset.from_parquet(str(out / "round_1" / "pairs.parquet"))
    assert len(pairs) == counts["pairs"] == 2 * (counts["i->c"] + counts["c->i"])  # under both prompts
    assert pairs["transition"].count("i->c") == 2 * counts["i->c"]
    card = ModelCard.load(out / "README.md")
    assert "2410.04055" in card.content and "acc@t2" in card.content
    assert "Round 1: transcripts 100" in capsys.readouterr().out


def test_rounds_with_an_adapter(launch):
    out = launch("--rounds 2 --use_peft --lora_target_modules all-linear --lora_r 4 --warmup_steps 0 --train_rows 60")
    names = {path.name for path in out.iterdir()}
    assert FILES | {"adapter_model.safetensors", "round_1", "round_2"} <= names and "model.safetensors" not in names
    assert "ref" not in names  # the second round's frozen copy of the first round's adapter is nobody's business
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (out / "round_1", out))
    assert first.keys() == second.keys() and any((first[key] != second[key]).any() for key in first)
    assert [counts["round"] for counts in json.loads((out / "metrics.json").read_text())["rounds"]] == [1, 2]


def test_a_run_that_was_killed_goes_on_with_its_pairs(launch):
    whole = launch("--save_strategy steps --save_steps 1", "whole")
    pairs = (whole / "round_1" / "pairs.parquet").read_bytes()
    # The first step of a second run, in whose place it goes on
    killed = launch("--save_strategy steps --save_steps 1", "killed")
    (killed / "model.safetensors").unlink()
    resumed = launch("--resume_from_checkpoint killed/round_1/checkpoint-1 --train_rows 1", "killed")
    assert (resumed / "round_1" / "pairs.parquet").read_bytes() == pairs  # not sampled again, from one row
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(expected[key].equal(found[key]) for key in expected)


def test_a_vision_language_model(launch, tmp_path):
    model, processor = build_llava()
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    (tmp_path / "data").mkdir()
    image_problems(30).to_parquet(tmp_path / "data" / "train.parquet")
    image_problems(8).to_parquet(tmp_path / "data" / "test.parquet")
    out = launch(
        "--model_name_or_path llava --dataset_name data --value_function tiny_vision_models:odd_number_of_letters "
        "--max_completion_length 60 --pair_prompt both --bf16 false --max_length null --instruction again. "
        "--report_to none --max_steps 2"
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["after"]["acc@t2"]["n"] == 8 and metrics["rounds"][0]["pairs"] >= 4
    assert "image" in Dataset.from_parquet(str(out / "round_1" / "pairs.parquet")).column_names
    before, after = load_file(tmp_path / "llava" / "model.safetensors"), load_file(out / "model.safetensors")
    assert any((before[key] != after[key]).any() for key in before)
    assert (out / "processor_config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--rounds 0", "`rounds` and `samples_per_prompt` must be at least 1"),
        ("--dataset_name nowhere.jsonl", "nowhere.jsonl"),
        ("--value_function correction_trl.carry_addition:nobody", "has no 'nobody'"),
        ("--pair_prompt answer", "pair_prompt"),
        ("--temperature 0.01", "No transcript makes a pair"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(launch, tmp_path, arguments, sentence):
    with pytest.raises(SystemExit) as stopped:
        launch(arguments + (" --value_function math:gcd" if "nowhere" in arguments else ""))
    assert sentence in str(stopped.value) and "\n" not in str(stopped.value)
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_sharded_weights_are_refused(launch, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SystemExit, match="use DDP or ZeRO-2"):
        launch("")
