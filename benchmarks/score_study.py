"""
SCoRe on the embedded task: the tables of the paper at this scale, its ablations, the inference-compute curve and more
attempts than it was trained on.

Every run starts from the embedded base model and has the settings of recipes/configs/score/quickstart.yaml, but for
what its name says. Each run is evaluated on all test problems, greedily and at temperature 1. A run that the results
file already holds is not run again.

    python benchmarks/score_study.py --seeds 0 1 2 3 4     # writes results/score_study.json and docs/score_study.md

In several processes side by side, each with a results file of its own, merged at the end:

    python benchmarks/score_study.py --part 0/2 --results /tmp/0.json & python benchmarks/score_study.py --part 1/2 ...
    python benchmarks/score_study.py --merge /tmp/0.json /tmp/1.json
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from correction_trl import SCoReTrainer
from correction_trl.embedded import embedded_path, exact_match
from correction_trl.evaluation import evaluate_attempts
from correction_trl.metrics import summarize
from correction_trl.report import installed_versions
from correction_trl.tokenization import decode, stop_token_ids, tokenize_prompt
from correction_trl.turns import FollowUp, sample_attempts


ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "score_study.json"
sys.path.insert(0, str(ROOT / "recipes"))

# Overrides of the quickstart, by the name of the run. `turns: 1` needs the two attempts only in the evaluation.
RL_RUNS = {
    "SCoRe": {},
    "single-turn RL": {"turns": 1, "stage": "2"},
    "SCoRe without Stage I": {"stage": "2"},
    "SCoRe without the bonus": {"alpha": 0.0},
    "multi-turn RL": {"stage": "2", "alpha": 0.0},
}
BASE = "base"
INSTRUCTION = "There might be an error in the answer above. Please correct it."
# 97.5 % quantiles of Student's t by degrees of freedom
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
KEYS = ("acc@t1", "acc@t2", "delta(t1,t2)", "delta(i->c)", "delta(c->i)", "answer_changed", "edit_distance_ratio")


def train(run: str, seed: int, folder: Path) -> Path:
    """One run; returns the folder of its model."""
    import score  # the recipe

    overrides = {"seed": seed, "output_dir": str(folder), "disable_tqdm": True, "logging_steps": 10, **RL_RUNS[run]}
    if run == "SCoRe":  # its Stage I is the start of "STaR in Stage II"
        overrides.update(save_strategy="steps", save_steps=50, save_only_model=True)
    arguments = [part for name, value in overrides.items() for part in (f"--{name}", str(value))]
    script_args, training_args, _ = score.parse_arguments(["--config", str(score.QUICKSTART), *arguments])
    trainer = SCoReTrainer(
        model=embedded_path("tiny-carry-chat"),
        reward_funcs=exact_match,
        args=training_args,
        train_dataset=load_dataset(embedded_path("carry_addition"), split="train"),
    )
    trainer.train()
    trainer.save_model(folder)
    return folder


def measure(model, tokenizer, test: Dataset, hard: Dataset, seed: int) -> dict:
    """Greedy and sampled metrics on the test problems, greedy ones on the harder problems."""

    def attempts(dataset, temperature=0.0):
        found = evaluate_attempts(
            model,
            tokenizer,
            dataset,
            exact_match,
            INSTRUCTION,
            temperature=temperature,
            max_completion_length=16,
            batch_size=500,
            seed=seed,
        )
        return {key: found.metrics[key] for key in (*KEYS, "fix_rate")}

    return {"greedy": attempts(test), "sampled": attempts(test, 1.0), "hard": attempts(hard)}


def many_attempts(model, tokenizer, test: Dataset, n_turns: int = 10) -> list[dict]:
    """Accuracy after each of `n_turns` greedy attempts."""
    found = evaluate_attempts(
        model, tokenizer, test, exact_match, INSTRUCTION, n_turns=n_turns, max_completion_length=16, batch_size=250
    )
    return [found.metrics[f"acc@t{turn}"] for turn in range(1, n_turns + 1)]


def compute_curve(model, tokenizer, test: Dataset, seed: int, largest: int = 16, temperature: float = 0.7) -> dict:
    """Majority of 2K parallel first attempts against the majority of K second attempts, each after a first one."""
    stop_ids = stop_token_ids(tokenizer, model.generation_config)
    follow_up = FollowUp(tokenizer, stop_ids, conversational=True)
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=16,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stop_ids,
        disable_compile=True,
    )
    prompts = [tokenize_prompt(tokenizer, prompt)[1] for prompt in test["prompt"]]
    firsts, seconds = [], []
    torch.manual_seed(seed)
    for _ in range(largest):
        turns, _ = sample_attempts(
            model, prompts, lambda turn, ids: [follow_up(one, INSTRUCTION) for one in ids], 2, config
        )
        firsts.append(decode(tokenizer, turns[0]))
        seconds.append(decode(tokenizer, turns[1]))
    for _ in range(largest):
        turns, _ = sample_attempts(model, prompts, None, 1, config)
        firsts.append(decode(tokenizer, turns[0]))

    def majority(samples):
        votes = [Counter(column).most_common(1)[0][0] for column in zip(*samples, strict=True)]
        return summarize([float(vote.strip() == answer) for vote, answer in zip(votes, test["answer"], strict=True)])

    sizes = [k for k in (1, 2, 4, 8, 16) if k <= largest]
    return {
        "k": sizes,
        "parallel_2k": [majority(firsts[: 2 * k]) for k in sizes],
        "k_corrected": [majority(seconds[:k]) for k in sizes],
    }


def over_seeds(values: list[float]) -> dict:
    """Mean over training seeds with the 95 % interval of a t-distribution."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "n_seeds": len(values)}
    half = STUDENT_T[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "n_seeds": len(values)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", nargs="+", help="run only these")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th run, for several processes side by side")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--models", type=Path, default=Path("outputs/score_study"), help="where models are kept")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="results files to add to --results first")
    args = parser.parse_args()
    torch.set_num_threads(1)
    part, n_parts = map(int, args.part.split("/"))

    data = load_dataset(embedded_path("carry_addition"))
    test, hard = data["test"], data["test_hard"]
    tokenizer = AutoTokenizer.from_pretrained(embedded_path("tiny-carry-chat"))
    results = json.loads(args.results.read_text()) if args.results.exists() else {"cells": []}
    for other in args.merge:
        results["cells"] += json.loads(other.read_text())["cells"]
    results["cells"] = list({(cell["run"], cell["seed"]): cell for cell in results["cells"]}.values())
    results["command"] = f"python benchmarks/score_study.py --seeds {' '.join(map(str, args.seeds))}"
    results["versions"] = installed_versions()

    def save():
        args.results.parent.mkdir(exist_ok=True, parents=True)
        temporary = args.results.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1))
        os.replace(temporary, args.results)

    def add(run, seed, model, start, **more):
        model.eval()
        cell = {"run": run, "seed": seed, **measure(model, tokenizer, test, hard, seed), **more}
        if run in (BASE, "SCoRe", "Pair-SFT"):
            cell["ten_attempts"] = many_attempts(model, tokenizer, test.select(range(1000)))
        if run in (BASE, "SCoRe"):
            cell["compute"] = compute_curve(model, tokenizer, test.select(range(500)), seed)
        cell["seconds"] = round(time.time() - start, 1)
        results["cells"].append(cell)
        save()
        greedy = {key: round(100 * cell["greedy"][key]["mean"], 1) for key in KEYS[:5]}
        print(run, seed, greedy, f"{cell['seconds']} s", flush=True)

    done = {(cell["run"], cell["seed"]) for cell in results["cells"]}
    wanted = [(BASE, 0)] + [(run, seed) for seed in args.seeds for run in RL_RUNS]
    wanted = [cell for cell in wanted if args.runs is None or cell[0] in args.runs]
    for i, (run, seed) in enumerate(wanted):
        if i % n_parts != part or (run, seed) in done:
            continue
        start = time.time()
        if run == BASE:
            add(run, seed, AutoModelForCausalLM.from_pretrained(embedded_path("tiny-carry-chat")), start)
            continue
        folder = train(run, seed, args.models / f"{run.replace(' ', '_')}-{seed}")
        training_seconds = round(time.time() - start, 1)
        model = AutoModelForCausalLM.from_pretrained(folder)
        add(run, seed, model, start, training_seconds=training_seconds)
    save()


if __name__ == "__main__":
    main()
