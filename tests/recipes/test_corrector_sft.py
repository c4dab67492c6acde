"""The corrector's recipes as a user runs them: training, its baselines, and correcting a file and a stream."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from correction_trl.carry_addition import embedded_path
from correction_trl.corrector_sft.corrector_sft_trainer import POOL_FILE
from correction_trl.policy.corrector_prompt import FILE_NAME
from correction_trl.recipe import run


pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs" / "corrector_sft"


def load(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


recipe, correct = load("corrector_sft"), load("correct")


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """The recipe with a few small settings; returns its output folder."""
    monkeypatch.chdir(tmp_path)

    def launch(arguments):
        argv = "--max_steps 2 --per_device_train_batch_size 8 --train_rows 24 --test_rows 24 --exploration_steps 1"
        argv = [*argv.split(), "--output_dir", "out", "--disable_tqdm", "true", "--logging_steps", "1"]
        argv = [*arguments.split()[:2], *argv, *arguments.split()[2:]]  # a config first
        monkeypatch.setattr(sys, "argv", ["recipes/corrector_sft.py", *argv])
        run(recipe.main, *recipe.parse_arguments(argv))
        return tmp_path / "out"

    return launch


def correct_with(monkeypatch, arguments):
    run(correct.main, *correct.parse_arguments(arguments.split()))


def test_no_arguments_leave_model_pool_metrics_card_and_pictures_and_it_corrects_a_file(
    launch, tmp_path, monkeypatch, capsys
):
    out = launch("")
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "metrics.json", "README.md", "learning_curves.png", "before_after.png"} <= names
    assert {POOL_FILE, FILE_NAME} <= names
    metrics = json.loads((out / "metrics.json").read_text())
    keys = {"acc@t1", "acc@t2", "acc@t4", "delta(t1,t2)", "delta(i->c)", "delta(c->i)", "edit_distance_ratio"}
    assert keys <= metrics["before"].keys() == metrics["after"].keys()
    assert metrics["before"]["acc@t1"] == metrics["after"]["acc@t1"]  # the generator is fixed
    assert metrics["after"]["acc@t2"]["n"] == 24
    card = ModelCard.load(out / "README.md")
    assert "2211.00053" in card.content and embedded_path("tiny-carry-chat") not in card.content
    assert "acc@t2" in capsys.readouterr().out

    prompt = [{"role": "user", "content": "188597027936 + 192071902361 ="}]
    lines = [{"prompt": prompt, "response": f"{i:013}", "id": i} for i in range(5)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = f"--model_name_or_path {out} --input in.jsonl --output done.jsonl --max_completion_length 16"
    correct_with(monkeypatch, f"{arguments} --batch_size 2")
    whole = (tmp_path / "done.jsonl").read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["id"] for row in rows] == list(range(5))
    for row, line in zip(rows, lines, strict=True):
        assert row["response"] == line["response"] and row["corrections"][-1] == row["corrected"]
        assert row["stop"] in ("unchanged", "max corrections") and 1 <= len(row["corrections"]) <= 3
    # Killed in the middle of a line, it goes on where it was
    (tmp_path / "done.jsonl").write_text("".join(whole.splitlines(keepends=True)[:2]) + whole.splitlines()[2][:20])
    correct_with(monkeypatch, f"{arguments} --batch_size 2")
    assert (tmp_path / "done.jsonl").read_text() == whole
    assert "5 responses (2 were there already)" in capsys.readouterr().err


def test_a_stream_is_answered_line_by_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prompt = [{"role": "user", "content": "188597027936 + 192071902361 ="}]
    lines = [json.dumps({"prompt": prompt, "response": f"{i:013}"}) + "\n" for i in range(3)]
    answered_before = []

    def stream():
        for line in lines:
            answered_before.append(capsys.readouterr().out.count("\n"))
            yield line

    monkeypatch.setattr(sys, "stdin", stream())
    correct_with(monkeypatch, "--input - --batch_size 1 --max_completion_length 16 --max_corrections 1")
    assert answered_before == [0, 1, 1]  # read off at each line: one answer since the last


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "line 1 is no JSON"),
        ('{"prompt": "a", "response": "b"}\n{"prompt": "a"}', "line 2 has no 'response'"),
        ('["prompt"]', "line 1 has no 'prompt'"),
    ],
)
def test_a_bad_line_is_named_and_the_lines_before_it_are_kept(tmp_path, monkeypatch, content, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=sentence):
        correct_with(monkeypatch, "--input in.jsonl --output out.jsonl --batch_size 1 --max_completion_length 8")
    done = (tmp_path / "out.jsonl").read_text().splitlines() if "line 2" in sentence else []
    assert len(done) == ("line 2" in sentence)


def test_a_corrector_that_is_none_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="'nowhere/model' cannot be loaded"):
        correct_with(monkeypatch, "--model_name_or_path nowhere/model")
    with pytest.raises(SystemExit, match="is no file"):
        correct_with(monkeypatch, "--input nowhere.jsonl")


@pytest.mark.parametrize("name", ["star", "pair_sft", "stasc"])
def test_a_baseline_answers_and_corrects_itself(launch, name):
    steps = "0" if name == "pair_sft" else "1"
    # Untrained pairs may be rare among a few samples: more of them
    out = launch(
        f"--config {CONFIGS / name}.yaml --exploration_steps {steps} --train_rows 48 --samples_per_prompt 8 "
        "--exploration_hypotheses 8 --pair_filter non_decreasing --temperature 1.0"
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"acc@t1", "acc@t2"} <= metrics["after"].keys() and "acc@t3" not in metrics["after"]
    assert metrics["config"]["answers_itself"] is True


def test_fine_tuning_on_gold_has_first_answers_only(launch):
    out = launch(f"--config {CONFIGS / 'sft'}.yaml --exploration_steps 0")
    metrics = json.loads((out / "metrics.json").read_text())
    assert "acc@t1" in metrics["after"] and "acc@t2" not in metrics["after"]
    assert not (out / FILE_NAME).exists()


def test_feedback_and_another_generator(launch):
    out = launch(
        "--feedback_function correction_trl.carry_addition:marked_digits --max_corrections 1 "
        f"--generator_name_or_path {embedded_path('tiny-carry-chat')} --use_peft true --lora_target_modules all-linear"
    )
    assert (out / "adapter_model.safetensors").is_file() and (out / FILE_NAME).is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--dataset_name {prompts}", "dataset's columns (none): missing a required argument: 'answer'"),
        ("--dataset_name {prompts} --model_name_or_path {prompts} --bf16 false", "`value_function` is required"),
        ("--value_function correction_trl.carry_addition:nobody", "has no 'nobody'"),
        ("--feedback_function nowhere:f", "there is no module 'nowhere'"),
        ("--dataset_name {empty}", "the file is empty"),
        (
            "--value_function correction_trl.carry_addition:exact_match --train_rows 1 --samples_per_prompt 1",
            "not one pair",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(launch, tmp_path, arguments, sentence):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(SystemExit) as stopped:
        launch(arguments.format(prompts=tmp_path / "prompts.jsonl", empty=tmp_path / "empty.jsonl"))
    assert sentence in str(stopped.value) and "\n" not in str(stopped.value)
    assert not (tmp_path / "out" / "metrics.json").exists()
