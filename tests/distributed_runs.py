"""
Short trainings that give the same on one process and on two: `launch`ed by tests, and called in their own process.

`distributed_runs.py model pairs prompts folder n_processes` runs each of them, without and with accumulation.
"""

import random
import sys
from pathlib import Path

import torch
from datasets import Dataset, load_from_disk
from helpers import make_args

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer, SCoReConfig, SCoReTrainer
from correction_trl.recipe import end_processes


def share_of_digits(completions, **columns):
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in completions]


class FixedRollouts(SCoReTrainer):
    """Rollouts that depend on the prompt and on the place in its group alone: one process and two have the same."""

    def _sample_attempts(self, prompt_ids, follow_ups_of):
        attempts = [[], []]
        for i, ids in enumerate(prompt_ids):
            choose = random.Random(f"{ids}/{i % 4}")
            for turn in attempts:
                turn.append([choose.randint(6, 40) for _ in range(choose.randint(1, 6))] + [2])
        return attempts, [[follow_ups_of[0](ids, self.args.instruction) for ids in attempts[0]]]


def common(out, batch_size, n_processes, accumulation, max_steps):
    return make_args(
        Path(out),
        output_dir=out,
        per_device_train_batch_size=batch_size // n_processes // accumulation,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        max_steps=max_steps,
    )


def pairs_trainer(model, pairs, prompts, out, n_processes, accumulation):
    """Three updates on eight pairs of differing length, one of them unchanged."""
    args = CorrectionOptimizationConfig(
        **common(out, 8, n_processes, accumulation, max_steps=3),
        # The processes need unequal numbers of forwards
        max_tokens_per_micro_batch=300 if accumulation == 2 else None,
    )
    return CorrectionOptimizationTrainer(model, args, train_dataset=load_from_disk(pairs))


def score_trainer(model, pairs, prompts, out, n_processes, accumulation):
    args = SCoReConfig(
        **common(out, 16, n_processes, accumulation, max_steps=4),
        num_generations=4,
        instruction="look again.",
        first_attempt_kl_target=0.01,
        max_tokens_per_micro_batch=90 if accumulation == 2 else None,
    )
    return FixedRollouts(model, share_of_digits, args, train_dataset=load_from_disk(prompts))


def replay_trainer(model, pairs, prompts, out, n_processes, accumulation):
    """Three updates on eight pairs and four replayed rows, which the processes need unequal numbers of forwards of."""
    args = CorrectionOptimizationConfig(
        **common(out, 8, n_processes, accumulation, max_steps=3),
        replay_share=1 / 3,
        max_tokens_per_micro_batch=60 if accumulation == 2 else None,
    )
    general = [{"prompt": f"say {i}. ", "completion": "so" + " and so" * (i % 4)} for i in range(10)]
    return CorrectionOptimizationTrainer(
        model, args, train_dataset=load_from_disk(pairs), replay_dataset=Dataset.from_list(general)
    )


RUNS = {"pairs": pairs_trainer, "score": score_trainer, "replay": replay_trainer}


def run(name, model, pairs, prompts, folder, n_processes, accumulation):
    """Trains and leaves the weights and the log in `{name}_{n_processes}_{accumulation}.pt`."""
    out = f"{folder}/{name}_{n_processes}_{accumulation}"
    trainer = RUNS[name](model, pairs, prompts, out, n_processes, accumulation)
    assert trainer.accelerator.num_processes == n_processes
    trainer.train()
    if trainer.accelerator.is_main_process:
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        torch.save({"weights": weights, "log": log}, f"{out}.pt")
    return trainer


if __name__ == "__main__":
    *places, n_processes = sys.argv[1:]
    for name in RUNS:
        for accumulation in (1, 2):
            trainer = run(name, *places, int(n_processes), accumulation)
    end_processes(trainer)
