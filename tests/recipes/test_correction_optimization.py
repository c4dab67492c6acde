"""The recipe as a user runs it: what it leaves behind, and what it says when something is wrong."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from correction_trl.carry_addition import embedded_path
from correction_trl.recipe import run


pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location(
        "recipe_correction_optimization", ROOT / "recipes" / "correction_optimization.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def launch(recipe, tmp_path, monkeypatch):
    """The recipe with a few small settings; returns its output folder."""
    monkeypatch.chdir(tmp_path)

    def launch(arguments):
        argv = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--test_rows", "24", "--train_rows", "64"]
        monkeypatch.setattr(sys, "argv", ["recipes/correction_optimization.py", *arguments.split()])
        run(
            recipe.main,
            *recipe.parse_arguments([*argv, "--output_dir", "out", "--disable_tqdm", "true", *arguments.split()]),
        )
        return tmp_path / "out"

    return launch


FILES = {"metrics.json", "README.md", "learning_curves.png", "before_after.png", "edits.png", "examples.png"}


def test_no_arguments_leave_model_metrics_card_and_pictures(launch, capsys):
    out = launch("")
    assert FILES | {"model.safetensors", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    metrics = json.loads((out / "metrics.json").read_text())
    keys = {"acc@t1", "correction_amount", "correction_edit_ratio", "logps/response", "logps/correction"}
    assert keys <= metrics["before"].keys() == metrics["after"].keys()
    for summary in (*metrics["before"].values(), *metrics["after"].values()):
        assert summary["low"] <= summary["mean"] <= summary["high"] and summary["n"] == 24
    assert metrics["seconds"] > 0 and metrics["config"]["max_steps"] == 2 and "trl" in metrics["versions"]
    assert metrics["difference"]["acc@t1"]["n"] == 24
    card = ModelCard.load(out / "README.md")
    assert {result.metric_type for result in card.data.eval_results} >= keys
    assert "base_model" not in card.data.to_dict() and embedded_path("tiny-carry-chat") not in card.content
    assert "prhegde" in card.content and "correction_optimization.py" in card.content
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == len(tokenizer)
    assert "acc@t1" in capsys.readouterr().out


def test_an_adapter_is_saved_alone(launch):
    out = launch("--use_peft --lora_target_modules all-linear --lora_r 4")
    names = {path.name for path in out.iterdir()}
    assert FILES | {"adapter_model.safetensors"} <= names and "model.safetensors" not in names
    assert ModelCard.load(out / "README.md").data.library_name == "peft"


def test_stored_pairs_from_a_file_need_no_teacher(launch, tmp_path):
    rows = [
        {
            "prompt": f"00000000000{i} + 000000000001 =",
            "response": f"000000000000{i}",
            "correction": f"000000000000{i + 1}",
        }
        for i in range(8)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    out = launch(f"--dataset_name {file} --loss_type dpop")
    metrics = json.loads((out / "metrics.json").read_text())
    # The file is what was trained on: nothing is measured on it
    assert metrics["before"] == metrics["after"] == {}
    assert (out / "learning_curves.png").is_file() and not (out / "before_after.png").exists()


def test_prompts_from_a_file_are_trained_on_without_an_evaluation(launch, tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"00000000000{i} + 000000000001 =", "answer": f"000000000000{i + 1}"} for i in range(8)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    out = launch(f"--dataset_name {file} --teacher correction_trl.carry_addition:right_answer_teacher")
    assert json.loads((out / "metrics.json").read_text())["before"] == {}
    assert (out / "learning_curves.png").is_file() and not (out / "edits.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--dataset_name {empty}", "empty.jsonl: the file is empty"),
        ("--dataset_name {no_prompt} --teacher correction_trl.carry_addition:one_digit_teacher", "no column 'prompt'"),
        (
            "--dataset_name {bad_row} --teacher correction_trl.carry_addition:one_digit_teacher",
            "row 1: the prompt is empty",
        ),
        ("--dataset_name {prompts}", "no `teacher` was given"),
        ("--dataset_test_split nowhere", "has no split 'nowhere'"),
        ("--teacher nowhere:correct", "there is no module 'nowhere'"),
        ("--teacher correction_trl.carry_addition:nobody", "has no 'nobody'"),
        ("--length_prior normal", "`length_prior: 'normal'` must be a mapping"),
        ("--length_prior_mean 20", "`--length_prior_mean` is gone: `length_prior` is one mapping"),
        ("--loss_type dpop --reference_free", "needs `reference_free=False`"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(launch, tmp_path, arguments, sentence):
    files = {
        "empty": "",
        "no_prompt": '{"question": "1 + 1"}',
        "bad_row": '{"prompt": "a"}\n{"prompt": " "}',
        "prompts": '{"prompt": "a"}',
    }
    for name, text in files.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        launch(arguments.format(**{name: tmp_path / f"{name}.jsonl" for name in files}))
    assert sentence in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_an_unknown_key_is_an_error(recipe, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("output_dir: out\nbf16: false\nlearning_rte: 0.1\n")
    with pytest.raises(SystemExit, match="learning_rte"):
        recipe.parse_arguments(["--config", str(config)])
