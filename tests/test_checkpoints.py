"""A checkpoint is whole or does not count, and a folder belongs to one run."""

import errno
import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import letters, teacher

from correction_trl import (
    CorrectionOptimizationConfig,
    CorrectionOptimizationTrainer,
    CorrectorSFTConfig,
    CorrectorSFTTrainer,
    SCoReConfig,
    SCoReTrainer,
)
from correction_trl.checkpoints import LOCK_FILE, checkpoint_problem, checkpoint_to_resume_from, full_disk, owned
from correction_trl.errors import BadInput


METHODS = ["correction_optimization", "corrector_sft", "score"]


def share_of_digits(completions, **columns):
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [sum(character.isdigit() for character in text) / max(len(text), 1) for text in texts]


def make_trainer(method, make_args, tmp_path, model, prompts, **settings):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **settings}
    if method == "correction_optimization":
        args = CorrectionOptimizationConfig(**make_args(tmp_path, max_staleness=2, **settings))
        return CorrectionOptimizationTrainer(model, args, train_dataset=prompts, teacher=teacher)
    if method == "corrector_sft":
        settings = {"samples_per_prompt": 6, "exploration_steps": 0, "max_length": None, **settings}
        settings = make_args(tmp_path, max_completion_length=16, **settings)
        del settings["mask_truncated_completions"]  # no target of a corrector was cut off
        args = CorrectorSFTConfig(**settings)
        return CorrectorSFTTrainer(model, args, train_dataset=prompts.select(range(8)), value_function=letters)
    settings = {"reference": "stage_1", "num_generations": 4, "instruction": "check it.", **settings}
    args = SCoReConfig(**make_args(tmp_path, per_device_train_batch_size=8, **{**settings}))
    return SCoReTrainer(model, share_of_digits, args, train_dataset=prompts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model, plain_prompts):
    """One finished run per method, with two checkpoints each."""
    from helpers import make_args

    folders = {}
    for method in METHODS:
        folder = tmp_path_factory.mktemp(method)
        make_trainer(method, make_args, folder, tiny_model, plain_prompts).train()
        folders[method] = folder / "output"
    return folders


@pytest.fixture
def run(runs, tmp_path, request):
    shutil.copytree(runs[request.param], tmp_path / "output")
    return request.param, tmp_path / "output"


each_method = pytest.mark.parametrize("run", METHODS, indirect=True)


@each_method
def test_every_missing_or_cut_off_file_is_named_and_the_whole_checkpoint_offered(
    run, make_args, tmp_path, tiny_model, plain_prompts
):
    method, output = run
    trainer = make_trainer(method, make_args, tmp_path, tiny_model, plain_prompts)
    names = {path.name for path in (output / "checkpoint-4").iterdir()}
    # What a resumed run does not read: the tokenizer, the card, the arguments
    read = {"trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    read |= set(trainer._side_files())
    assert read <= names
    for name in sorted(read):
        whole = (output / "checkpoint-4" / name).read_bytes()
        for damaged in (None, whole[: len(whole) // 2], whole[:-2]):
            if damaged is None:
                (output / "checkpoint-4" / name).unlink()
            else:
                (output / "checkpoint-4" / name).write_bytes(damaged)
            if damaged is not None and name.endswith(".parquet"):
                continue  # read, and refused, by the pool
            with pytest.raises(BadInput, match="the newest whole one is .*checkpoint-2") as error:
                trainer.train(resume_from_checkpoint=str(output / "checkpoint-4"))
            assert "weights are missing" in str(error.value) or name in str(error.value)
            assert checkpoint_to_resume_from(True, output, trainer._side_files()).endswith("checkpoint-2")
        (output / "checkpoint-4" / name).write_bytes(whole)
    assert checkpoint_problem(output / "checkpoint-4", trainer._side_files()) is None


@each_method
def test_a_run_that_dies_between_any_two_files_leaves_a_whole_checkpoint(
    run, make_args, tmp_path, tiny_model, plain_prompts, monkeypatch
):
    """With `save_total_limit: 1` too: side files are there before the state file, and rotation comes after both."""
    method, output = run
    shutil.rmtree(output)
    trainer = make_trainer(method, make_args, tmp_path, tiny_model, plain_prompts, save_total_limit=1)
    seen = []

    def look(*args, **kwargs):
        folder = output / f"checkpoint-{trainer.state.global_step}"
        seen.append(checkpoint_problem(folder, trainer._side_files()))

    import transformers.trainer

    rotate = transformers.trainer.rotate_checkpoints
    monkeypatch.setattr("transformers.trainer.rotate_checkpoints", lambda **kwargs: (look(), rotate(**kwargs)))
    trainer.train()
    assert seen == [None, None]


@each_method
def test_true_means_the_newest_whole_checkpoint(run, make_args, tmp_path, tiny_model, plain_prompts):
    method, output = run
    reference = torch.load(output / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"][0]["exp_avg"]
    (output / "checkpoint-4" / "trainer_state.json").unlink()
    trainer = make_trainer(method, make_args, tmp_path, tiny_model, plain_prompts)
    trainer.train(resume_from_checkpoint=True)
    again = torch.load(output / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"][0]["exp_avg"]
    assert torch.equal(reference, again)


def test_without_its_optimizer_a_run_goes_on_only_if_that_was_asked_for(runs, tmp_path):
    shutil.copytree(runs["correction_optimization"], tmp_path / "output")
    checkpoint = tmp_path / "output" / "checkpoint-4"
    (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(BadInput, match="optimizer.pt is missing; .*save_only_model: true"):
        checkpoint_to_resume_from(str(checkpoint), tmp_path / "output")
    assert checkpoint_to_resume_from(str(checkpoint), tmp_path / "output", weights_only=True) == str(checkpoint)


@pytest.mark.parametrize(("wanted", "message"), [("nowhere", "no such folder"), (True, "no whole checkpoint")])
def test_what_is_not_there_is_said(tmp_path, wanted, message):
    with pytest.raises(BadInput, match=message):
        checkpoint_to_resume_from(wanted, tmp_path)
    assert checkpoint_to_resume_from(None, tmp_path) is checkpoint_to_resume_from("false", tmp_path) is None


def test_shards_are_looked_for(tmp_path):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({}, tmp_path / name)
    (tmp_path / "trainer_state.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert checkpoint_problem(tmp_path) == "model-1.safetensors is missing"


HOLD = """
import sys, time
from pathlib import Path
from correction_trl.checkpoints import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_in_the_folder_is_refused_and_a_dead_ones_lock_is_taken_over(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    try:
        with pytest.raises(BadInput, match=rf"going on \(process {other.pid} on .*another `output_dir`"):
            with owned(tmp_path):
                pass
    finally:
        other.kill()
        other.wait()
    assert (tmp_path / LOCK_FILE).is_file()
    with owned(tmp_path), owned(tmp_path):  # the trainer within a recipe
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null"])
def test_a_lock_that_says_nothing_is_taken_over(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with owned(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_machine_is_respected(tmp_path):
    (tmp_path / LOCK_FILE).write_text(json.dumps({"pid": 1, "started": 0.0, "host": "another"}))
    with pytest.raises(BadInput, match=re.escape("(process 1 on another)")):
        with owned(tmp_path):
            pass
    assert Path(tmp_path / LOCK_FILE).is_file()


@pytest.mark.parametrize("room", [100, 20_000, 200_000], ids=["the config", "the weights", "the optimizer"])
def test_a_full_disk_is_one_sentence_and_costs_no_earlier_checkpoint(
    room, make_args, tmp_path, tiny_model, plain_prompts
):
    """A limit on the size of files in its place, which safetensors, torch and Python meet as the end of a disk."""
    trainer = make_trainer("correction_optimization", make_args, tmp_path, tiny_model, plain_prompts)
    before, write_side_files = resource.getrlimit(resource.RLIMIT_FSIZE), trainer._write_side_files

    def full_at_the_second(folder):
        if folder.name == "checkpoint-4":
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        write_side_files(folder)

    trainer._write_side_files = full_at_the_second
    try:
        with pytest.raises(BadInput, match="checkpoint-4 could not be written .* make room .*checkpoint-2") as error:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert checkpoint_to_resume_from(True, tmp_path / "output").endswith("checkpoint-2")


def test_what_a_full_disk_is_and_what_it_is_not():
    assert full_disk(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert full_disk(sqlite3.OperationalError("database or disk is full")) is not None
    for other in (OSError(errno.EACCES, "no"), RuntimeError("CUDA out of memory"), ValueError("disk is full")):
        assert full_disk(other) is None
