"""
What does a model learn from its own self-corrections?

SCL on the embedded task and model: dialogues of two turns at temperature 1, preference pairs under each of the
prompts, against two controls with as many pairs. The first seed is run at two learning rates, the others at the one
that is better on validation. A cell that the results file already holds is not run again.

    python benchmarks/scl_study.py --seeds 0 1 2          # writes results/scl.json and docs/pictures/scl.png
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from datasets import load_dataset
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.carry_addition import embedded_path, exact_match
from correction_trl.evaluation import evaluate_attempts
from correction_trl.reporting import installed_versions
from correction_trl.self_correction_dpo.pairs import Transcript, make_pairs, sample_transcripts


ROOT = Path(__file__).parent.parent
RESULTS, PICTURE = ROOT / "results" / "scl.json", ROOT / "docs" / "pictures" / "scl.png"
INSTRUCTION = "There might be an error in the answer above. Please correct it."
METRICS = ("acc@t1", "acc@t2", "delta(t1,t2)", "delta(i->c)", "delta(c->i)", "answer_changed")

# (arm, prompt of the pairs, rounds, learning rates)
ARMS = (
    ("question", "question", 1, (1e-4, 2e-4)),
    ("two_turns", "two_turns", 1, (1e-4, 2e-4)),
    ("both", "both", 1, (1e-4, 2e-4)),
    # The preferred answers alone: is the comparison with the other answer needed?
    ("question, NLL alone", "question", 1, (2e-4,)),
    # Right and wrong out of two independent first answers, as many pairs: is the second look needed?
    ("question, two independent answers", "question", 1, (2e-4,)),
    ("both, two rounds", "both", 2, (2e-4,)),
)


def independent(transcripts: list[Transcript]) -> list[Transcript]:
    """The first answers of two dialogues with one problem, in the form of one dialogue."""
    found = []
    for one, other in zip(transcripts[::2], transcripts[1::2], strict=True):
        found.append(
            Transcript(
                row=one.row,
                prompt=one.prompt,
                first=one.first,
                second=other.first,
                first_value=one.first_value,
                second_value=other.first_value,
                prompt_ids=one.prompt_ids,
                first_ids=one.first_ids,
                follow_up_ids=[],
                second_ids=other.first_ids,
                first_complete=one.first_complete,
                second_complete=other.first_complete,
            )
        )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--problems", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)

    model_path = embedded_path("tiny-carry-chat")
    data = load_dataset(embedded_path("carry_addition"))
    problems = data["train"].select(range(args.problems))
    tokenizer = AutoTokenizer.from_pretrained(model_path)

    def measure(model, split, temperature, seed=0):
        evaluation = evaluate_attempts(
            model, tokenizer, split, exact_match, INSTRUCTION, temperature=temperature,
            max_completion_length=16, batch_size=500, seed=seed,
        )  # fmt: skip
        return {name: evaluation.metrics[name] for name in METRICS}

    def sample(path, seed, n_samples=1):
        model = AutoModelForCausalLM.from_pretrained(path)
        return sample_transcripts(
            model, tokenizer, problems, exact_match, INSTRUCTION, n_samples, max_completion_length=16, batch_size=500,
            seed=seed,
        )  # fmt: skip

    def train(path, pairs, arm, learning_rate, seed, output_dir):
        config = CorrectionOptimizationConfig(
            output_dir=output_dir,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=32,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=5,
            max_grad_norm=1.0,
            beta=1e-9 if arm.endswith("NLL alone") else 0.1,
            nll_weight=1 / 14,  # answers have 14 tokens: one per token
            max_completion_length=16,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            seed=seed,
            use_cpu=True,
        )
        trainer = CorrectionOptimizationTrainer(path, config, train_dataset=pairs)
        trainer.train()
        trainer.save_model(output_dir)
        return trainer.model

    results = json.loads(args.results.read_text()) if args.results.exists() else {"cells": []}
    results.update(
        problems=args.problems,
        epochs=args.epochs,
        seeds=args.seeds,
        instruction=INSTRUCTION,
        command=f"python benchmarks/scl_study.py --seeds {' '.join(map(str, args.seeds))}",
        versions=installed_versions(),
    )

    def save():
        args.results.parent.mkdir(exist_ok=True)
        temporary = args.results.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1))
        os.replace(temporary, args.results)

    if "base" not in results:
        base = AutoModelForCausalLM.from_pretrained(model_path)
        results["base"] = {"greedy": measure(base, data["test"], 0.0), "sampled": measure(base, data["test"], 1.0)}
        save()
    done = {(cell["arm"], cell["learning_rate"], cell["seed"]) for cell in results["cells"]}
    for seed in args.seeds:
        first_round, sampling_seconds = None, 0.0
        for arm, pair_prompt, rounds, learning_rates in ARMS:
            if seed != args.seeds[0]:
                learning_rates = (best_rate(results, arm),)
            for learning_rate in learning_rates:
                if (arm, learning_rate, seed) in done:
                    continue
                if first_round is None:
                    start = time.time()
                    first_round = sample(model_path, seed)
                    sampling_seconds = time.time() - start
                start, path, counts = time.time(), model_path, []
                for number in range(1, rounds + 1):
                    transcripts = first_round if number == 1 else sample(path, seed + 100 * number)
                    if arm.endswith("independent answers"):
                        n_pairs = make_pairs(first_round)[1]["pairs"]
                        pairs, found = make_pairs(independent(sample(model_path, seed + 1000, 2)))
                        counts.append({**found, "pairs": n_pairs})
                        pairs = pairs.shuffle(seed=seed).select(range(n_pairs))
                    else:
                        pairs, found = make_pairs(transcripts, pair_prompt, instruction=INSTRUCTION)
                        counts.append(found)
                    output_dir = tempfile.mkdtemp()
                    model = train(path, pairs, arm, learning_rate, seed, output_dir)
                    path = output_dir
                seconds = time.time() - start
                results["cells"].append(
                    {
                        "arm": arm,
                        "learning_rate": learning_rate,
                        "seed": seed,
                        "rounds": counts,
                        "validation": measure(model, data["validation"], 0.0),
                        "greedy": measure(model, data["test"], 0.0),
                        "sampled": measure(model, data["test"], 1.0, seed),
                        "seconds": round(seconds + sampling_seconds, 1),  # the first round's dialogues are shared
                    }
                )
                metrics = results["cells"][-1]["greedy"]
                print(arm, learning_rate, seed, *(f"{100 * metrics[m]['mean']:.1f}" for m in METRICS), flush=True)
                save()
    save()
    write_picture(results)
    print(table(results))


def best_rate(results, arm: str) -> float:
    """The learning rate that is best on validation with the first seed, by the mean of both accuracies."""
    runs = [cell for cell in results["cells"] if cell["arm"] == arm and cell["seed"] == results["seeds"][0]]
    best = max(runs, key=lambda run: run["validation"]["acc@t1"]["mean"] + run["validation"]["acc@t2"]["mean"])
    return best["learning_rate"]


def best_runs(results) -> dict[str, list[dict]]:
    """Per arm its runs at that rate."""
    rates = {arm: best_rate(results, arm) for arm in dict.fromkeys(cell["arm"] for cell in results["cells"])}
    return {
        arm: [cell for cell in results["cells"] if (cell["arm"], cell["learning_rate"]) == (arm, rate)]
        for arm, rate in rates.items()
    }


def mean_std(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)) ** 0.5


def table(results) -> str:
    """For docs/self_correction_dpo.md: percent, mean ± standard deviation over seeds."""
    lines = [
        "| pairs | pairs per run | lr | acc@t1 | acc@t2 | Δ(i→c) | Δ(c→i) | acc@t1, sampled | acc@t2, sampled |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    columns = [("greedy", name) for name in ("acc@t1", "acc@t2", "delta(i->c)", "delta(c->i)")]
    columns += [("sampled", name) for name in ("acc@t1", "acc@t2")]
    base = " | ".join(f"{100 * results['base'][kind][name]['mean']:.1f}" for kind, name in columns)
    lines.append(f"| base model | | | {base} |")
    for arm, runs in best_runs(results).items():
        numbers = " | ".join(
            "{:.1f} ± {:.1f}".format(*(100 * x for x in mean_std([run[kind][name]["mean"] for run in runs])))
            for kind, name in columns
        )
        n_pairs = mean_std([sum(found["pairs"] for found in run["rounds"]) for run in runs])[0]
        lines.append(f"| {arm} | {n_pairs:.0f} | {runs[0]['learning_rate']:.0e} | {numbers} |")
    return "\n".join(lines)


def write_picture(results) -> None:
    """First and second answer before and after, one point per seed."""
    arms = best_runs(results)
    figure = Figure(figsize=(8, 0.55 * (len(arms) + 1) + 1.2), layout="constrained")
    axis = figure.subplots()
    names = ["base model", *arms]
    for row, name in enumerate(names):
        runs = [results["base"]] if name == "base model" else arms[name]
        means = {
            metric: 100 * sum(run["greedy"][metric]["mean"] for run in runs) / len(runs)
            for metric in ("acc@t1", "acc@t2")
        }
        axis.plot(list(means.values()), [row, row], color="#c4c8cc", linewidth=2, zorder=1)
        for metric, color, offset in (("acc@t1", "#2b6a99", -0.12), ("acc@t2", "#c9742b", 0.12)):
            axis.scatter(
                [100 * run["greedy"][metric]["mean"] for run in runs],
                [row + offset] * len(runs),
                color=color,
                s=34,
                zorder=2,
                label={"acc@t1": "first answer", "acc@t2": "second answer"}[metric] if row == 0 else None,
            )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("right, greedy (%)")
    axis.set_title(
        f"SCL on the embedded task: {results['base']['greedy']['acc@t1']['n']} test problems, one point per seed",
        loc="left",
        fontsize=10,
        pad=24,
    )
    axis.grid(axis="x", color="#e6e8ea")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    main()
