"""Two processes on a CPU do what one does: the same gradient on stored pairs, and a whole recipe run."""

import json

import pytest
import torch
from helpers import ROOT, launch


pytestmark = pytest.mark.slow


# One update on eight pairs of differing length, one of them unchanged; writes the gradient, and the losses of three
# steps
SCRIPT = """
import sys
import torch
from datasets import load_from_disk
from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer

model, data, out, n_processes, accumulation = sys.argv[1:]
args = CorrectionOptimizationConfig(
    output_dir=out, max_steps=3, per_device_train_batch_size=8 // int(n_processes) // int(accumulation),
    gradient_accumulation_steps=int(accumulation), learning_rate=1e-3, max_grad_norm=0.0, logging_steps=1,
    max_tokens_per_micro_batch=300 if accumulation == "2" else None,  # the processes need unequal numbers of forwards
    save_strategy="no", report_to="none", bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True,
)
trainer = CorrectionOptimizationTrainer(model, args, train_dataset=load_from_disk(data))
assert trainer.accelerator.num_processes == int(n_processes)
trainer.train()
if trainer.accelerator.is_main_process:
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    torch.save({"weights": trainer.accelerator.unwrap_model(trainer.model).state_dict(), "log": entries}, out + ".pt")
# As recipes do: a process that ends while the other still talks to it is aborted
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


def test_two_processes_train_as_one(tmp_path, tiny_model, plain_pairs):
    rows = plain_pairs.to_list()[:24]
    rows[3]["correction"] = rows[3]["response"]
    data = tmp_path / "data"
    type(plain_pairs).from_list(rows).save_to_disk(data)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    results = {}
    for n_processes, accumulation in ((1, 1), (2, 1), (2, 2)):
        out = tmp_path / f"out{n_processes}{accumulation}"
        launch(
            [str(script), tiny_model, str(data), str(out), str(n_processes), str(accumulation)], n_processes, tmp_path
        )
        results[n_processes, accumulation] = torch.load(f"{out}.pt", weights_only=True)
    one = results.pop((1, 1))
    for other in results.values():
        for entry, expected in zip(other["log"], one["log"], strict=True):
            for key in (
                "loss",
                "logps/response",
                "logps/correction",
                "corrections/in_loss",
                "margins/mean",
                "num_tokens",
            ):
                assert entry[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), key
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(other["weights"][name], tensor, rtol=1e-3, atol=2e-5)


def test_the_recipe_runs_on_two_processes(tmp_path):
    launch(
        [
            str(ROOT / "recipes" / "correction_optimization.py"),
            *"--max_steps 2 --per_device_train_batch_size 8 --test_rows 41 --output_dir out".split(),
        ],
        n_processes=2,
        cwd=tmp_path,
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["before"].keys() == metrics["after"].keys()
    assert metrics["after"]["acc@t1"]["n"] == 41


# Rollouts that depend on the prompt and on the place in its group alone, so that one process and two have the same
SCORE_SCRIPT = """
import random
import sys
import torch
from datasets import load_from_disk
from correction_trl import SCoReConfig, SCoReTrainer

model, data, out, n_processes, accumulation = sys.argv[1:]


def share_of_digits(completions, **columns):
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in completions]


class FixedRollouts(SCoReTrainer):
    def _sample_attempts(self, prompt_ids, follow_ups_of):
        attempts = [[], []]
        for i, ids in enumerate(prompt_ids):
            choose = random.Random(f"{ids}/{i % 4}")
            for turn in attempts:
                turn.append([choose.randint(6, 40) for _ in range(choose.randint(1, 6))] + [2])
        return attempts, [[follow_ups_of[0](ids, self.args.instruction) for ids in attempts[0]]]


args = SCoReConfig(
    output_dir=out, max_steps=4, per_device_train_batch_size=16 // int(n_processes) // int(accumulation),
    gradient_accumulation_steps=int(accumulation), num_generations=4, learning_rate=1e-3, max_grad_norm=0.0,
    instruction="look again.", logging_steps=1, save_strategy="no", report_to="none", bf16=False, use_cpu=True,
    gradient_checkpointing=False, disable_tqdm=True, max_completion_length=8,
    first_attempt_kl_target=0.01, max_tokens_per_micro_batch=90 if accumulation == "2" else None,
)
trainer = FixedRollouts(model, share_of_digits, args, train_dataset=load_from_disk(data))
assert trainer.accelerator.num_processes == int(n_processes)
trainer.train()
if trainer.accelerator.is_main_process:
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    torch.save({"weights": trainer.accelerator.unwrap_model(trainer.model).state_dict(), "log": entries}, out + ".pt")
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


def test_score_on_two_processes_is_score_on_one(tmp_path, tiny_model, plain_prompts):
    data, script = tmp_path / "data", tmp_path / "script.py"
    plain_prompts.save_to_disk(data)
    script.write_text(SCORE_SCRIPT)
    results = {}
    for n_processes, accumulation in ((1, 1), (2, 1), (2, 2)):
        out = tmp_path / f"out{n_processes}{accumulation}"
        launch(
            [str(script), tiny_model, str(data), str(out), str(n_processes), str(accumulation)], n_processes, tmp_path
        )
        results[n_processes, accumulation] = torch.load(f"{out}.pt", weights_only=True)
    one = results.pop((1, 1))
    for other in results.values():
        for entry, expected in zip(other["log"], one["log"], strict=True):
            for key in (
                "loss",
                "reward/t2",
                "delta(i->c)",
                "kl/t1",
                "entropy/t2",
                "beta_2",
                "lengths/t1",
                "num_tokens",
            ):
                assert entry[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(other["weights"][name], tensor, rtol=1e-3, atol=2e-5)


def test_the_score_recipe_runs_on_two_processes(tmp_path):
    launch(
        [
            str(ROOT / "recipes" / "score.py"),
            *"--max_steps 2 --per_device_train_batch_size 8 --num_generations 4".split(),
            *"--test_rows 41 --output_dir out".split(),
        ],
        n_processes=2,
        cwd=tmp_path,
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["before"].keys() == metrics["after"].keys()
    assert metrics["after"]["acc@t2"]["n"] == 41
