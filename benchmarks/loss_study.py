"""
Which losses of correction optimization are safe, and which beat plain supervised fine-tuning on the corrections?

Every loss, with and without the NLL anchor, on-policy and on stored pairs, against TRL's `SFTTrainer` on the same
prompts with the corrections as completions (the control), all from the embedded base model and with the same number of
prompts and updates. Each cell is one training run; a cell that the results file already holds is not run again.

    python benchmarks/loss_study.py --seeds 0 1 2          # writes results/loss_study.json and docs/loss_study.md
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.carry_addition import embedded_path, exact_match, one_digit_teacher, right_answer_teacher
from correction_trl.evaluation import evaluate_corrections
from correction_trl.reporting import installed_versions


ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "loss_study.json"
TABLE = ROOT / "docs" / "loss_study.md"

LOSSES = {
    "linear": {"loss_type": "linear", "reference_free": True},
    "sigmoid": {"loss_type": "sigmoid", "beta": 0.3},
    "sigmoid, reference-free": {"loss_type": "sigmoid", "beta": 0.3, "reference_free": True},
    "hinge": {"loss_type": "hinge", "beta": 0.3},
    "ipo": {"loss_type": "ipo", "beta": 0.3},
    "dpop": {"loss_type": "dpop", "beta": 0.3},
    "cpl": {"loss_type": "cpl", "beta": 0.3, "reference_free": True},
    "ddpo": {"loss_type": "ddpo", "beta": 0.5},
    "linear, unchanged kept": {"loss_type": "linear", "reference_free": True, "unchanged_pairs": "keep"},
    "sigmoid, unchanged kept": {"loss_type": "sigmoid", "beta": 0.3, "unchanged_pairs": "keep"},
}
# Loss and weights of the NLL anchor
ON_POLICY = {
    "linear": (0.0, 0.5),
    "sigmoid": (0.0, 0.5, 1.0, 5.0),
    "sigmoid, reference-free": (0.0, 0.5),
    "hinge": (0.0, 0.5),
    "ddpo": (0.0, 0.5),
    "ipo": (0.5,),
    "dpop": (0.5,),
    "cpl": (0.5,),
    "linear, unchanged kept": (1.0,),
    "sigmoid, unchanged kept": (1.0, 5.0),
}
STORED = {
    "linear": (0.0, 0.5),
    "sigmoid": (0.0, 0.5, 1.0, 5.0),
    "sigmoid, reference-free": (0.0, 0.5),
    "dpop": (0.0, 0.5),
}
# With a teacher that corrects only one wrong digit of a response, so that y' keeps the other mistakes
ONE_DIGIT = {
    "linear": (0.0,),
    "sigmoid": (0.0, 0.5),
    "hinge": (0.5,),
    "ddpo": (0.5,),
}
CONTROL = "SFT on the corrections"
METRICS = ("acc@t1", "acc@t1/sampled", "correction_edit_ratio", "correction_amount", "logps/correction")


def cells(seeds):
    """Every run of the study: (data, loss, NLL weight, learning rate, seed)."""
    for seed in seeds:
        for learning_rate in (2e-4, 4e-4):
            yield "on-policy", CONTROL, 1.0, learning_rate, seed
            for loss, nll_weights in ON_POLICY.items():
                for nll_weight in nll_weights:
                    yield "on-policy", loss, nll_weight, learning_rate, seed
        yield "one digit", CONTROL, 1.0, 4e-4, seed
        for loss, nll_weights in ONE_DIGIT.items():
            for nll_weight in nll_weights:
                yield "one digit", loss, nll_weight, 4e-4, seed
        yield "stored", CONTROL, 1.0, 1e-4, seed
        for loss, nll_weights in STORED.items():
            for nll_weight in nll_weights:
                yield "stored", loss, nll_weight, 1e-4, seed


def stored_pairs(prompts: Dataset, model_path: str, n_pairs: int, seed: int) -> Dataset:
    """Wrong responses of the base model with their corrections, sampled once."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_path), AutoModelForCausalLM.from_pretrained(model_path)
    pairs = []
    for start in range(0, len(prompts), 2000):
        rows = prompts.select(range(start, min(start + 2000, len(prompts))))
        found = evaluate_corrections(
            model,
            tokenizer,
            rows,
            right_answer_teacher,
            max_completion_length=16,
            batch_size=500,
            seed=seed,
            n_examples=2000,
        )
        pairs += found.examples
        if len(pairs) >= n_pairs:
            break
    return Dataset.from_list(pairs[:n_pairs])


def train(data, loss, nll_weight, learning_rate, seed, prompts, pairs, model_path, args):
    set_seed(seed)
    common = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": args.steps,
        "per_device_train_batch_size": args.batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": 5,
        "max_grad_norm": 1.0,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": seed,
        "use_cpu": True,
    }
    if loss == CONTROL and data == "one digit":
        # y' depends on y here, so the control, too, has to sample: the anchor alone, on every pair
        config = CorrectionOptimizationConfig(
            **common,
            loss_type="sigmoid",
            beta=1e-9,
            nll_weight=nll_weight,
            unchanged_pairs="keep",
            reference_free=True,
            max_completion_length=16,
            max_length=None,
        )
        trainer = CorrectionOptimizationTrainer(model_path, config, train_dataset=prompts, teacher=one_digit_teacher)
    elif loss == CONTROL:
        if data == "stored":
            dataset = pairs.map(
                lambda row: {"completion": [{"role": "assistant", "content": row["correction"]}]},
                remove_columns=["response", "correction"],
            )
        else:
            dataset = prompts.map(
                lambda row: {"completion": [{"role": "assistant", "content": row["answer"]}]},
                remove_columns=["answer"],
            )
        trainer = SFTTrainer(model_path, args=SFTConfig(**common), train_dataset=dataset)
    else:
        config = CorrectionOptimizationConfig(
            **common, **LOSSES[loss], nll_weight=nll_weight, max_completion_length=16, max_length=None
        )
        trainer = CorrectionOptimizationTrainer(
            model_path,
            config,
            train_dataset=pairs if data == "stored" else prompts,
            teacher={"stored": None, "one digit": one_digit_teacher}.get(data, right_answer_teacher),
        )
    trainer.train()
    return trainer.model, trainer.processing_class


def write_table(results):
    """Mean over seeds, with the spread between them."""

    def mean_std(values):
        mean = sum(values) / len(values)
        return mean, (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)) ** 0.5

    base = results["base"]["metrics"]
    lines = [
        "# Which losses are safe, and which beat the control",
        "",
        f"Embedded task and base model; {results['steps']} updates of {results['batch_size']} prompts, linear "
        f"schedule; {base['acc@t1']['n']} test problems; mean ± standard deviation over seeds {results['seeds']}. "
        "`lr` is, in the first table, the better of 2e-4 and 4e-4 (by the mean of greedy and sampled accuracy on 500 "
        "validation problems); in the others one rate was run. Unchanged kept: `unchanged_pairs: keep`. The control "
        "is TRL's `SFTTrainer` on the same prompts with the corrections as completions. Sorted by the sum of both "
        "accuracies. What follows is in [correction_optimization.md](correction_optimization.md). Written by "
        "`python benchmarks/loss_study.py` from `results/loss_study.json`.",
        "",
    ]
    for data, title in (
        ("on-policy", "On-policy: responses sampled from the current policy, all wrong digits corrected"),
        ("one digit", "On-policy, with a teacher that corrects one wrong digit at a time"),
        ("stored", f"Stored pairs: {results['n_pairs']} wrong responses of the base model, used for several epochs"),
    ):
        lines += [
            f"## {title}",
            "",
            "| loss | NLL anchor | lr | acc@t1 (greedy) | acc@t1 (sampled) | edit ratio | log π(y'\\|x) |",
            "|---|---|---|---|---|---|---|",
            f"| base model | | | {100 * base['acc@t1']['mean']:.1f} | {100 * base['acc@t1/sampled']['mean']:.1f} | "
            f"{100 * base['correction_edit_ratio']['mean']:.1f} % | {base['logps/correction']['mean']:.2f} |",
        ]
        groups = {}
        for cell in results["cells"]:
            if cell["data"] == data:
                group = groups.setdefault((cell["loss"], cell["nll_weight"]), {})
                group.setdefault(cell["learning_rate"], []).append(cell)
        rows = []
        for (loss, nll_weight), by_rate in groups.items():
            best = max(
                by_rate, key=lambda rate: sum(c["validation_accuracy"] for c in by_rate[rate]) / len(by_rate[rate])
            )
            runs = by_rate[best]
            column = {name: mean_std([run["metrics"][name]["mean"] for run in runs]) for name in METRICS}
            anchor = "" if loss.startswith("SFT") else f"{nll_weight}"
            name = f"**{loss}** (control)" if loss.startswith("SFT") else loss
            rows.append(
                (
                    -column["acc@t1"][0] - column["acc@t1/sampled"][0],
                    f"| {name} | {anchor} | {best:.0e} | {100 * column['acc@t1'][0]:.1f} ± "
                    f"{100 * column['acc@t1'][1]:.1f} | {100 * column['acc@t1/sampled'][0]:.1f} ± "
                    f"{100 * column['acc@t1/sampled'][1]:.1f} | {100 * column['correction_edit_ratio'][0]:.1f} % | "
                    f"{column['logps/correction'][0]:.2f} |",
                )
            )
        lines += [line for _, line in sorted(rows)] + [""]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--n_pairs", type=int, default=2000)
    parser.add_argument("--only", choices=["on-policy", "one digit", "stored"], help="run only these cells")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th cell, for several processes side by side")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="results files to add to --results first")
    args = parser.parse_args()
    torch.set_num_threads(1)
    part, n_parts = map(int, args.part.split("/"))

    model_path, data_path = embedded_path("tiny-carry-chat"), embedded_path("carry_addition")
    data = load_dataset(data_path)
    tokenizer = AutoTokenizer.from_pretrained(model_path)

    def measure(model, split, seed):
        return evaluate_corrections(
            model,
            tokenizer,
            split,
            right_answer_teacher,
            exact_match,
            max_completion_length=16,
            batch_size=500,
            seed=seed,
        ).metrics

    results = json.loads(args.results.read_text()) if args.results.exists() else {"cells": []}
    keys = ("data", "loss", "nll_weight", "learning_rate", "seed")
    for other in args.merge:
        results["cells"] += json.loads(other.read_text())["cells"]
    results["cells"] = list({tuple(cell[key] for key in keys): cell for cell in results["cells"]}.values())
    results.update(
        steps=args.steps,
        batch_size=args.batch_size,
        n_pairs=args.n_pairs,
        seeds=args.seeds,
        command=f"python benchmarks/loss_study.py --seeds {' '.join(map(str, args.seeds))}",
        versions=installed_versions(),
    )
    if "base" not in results:
        results["base"] = {"metrics": measure(AutoModelForCausalLM.from_pretrained(model_path), data["test"], 0)}
    done = {tuple(cell[key] for key in keys) for cell in results["cells"]}
    pairs = {}
    for i, cell in enumerate(cells(args.seeds)):
        if i % n_parts != part or cell in done or (args.only and cell[0] != args.only):
            continue
        seed = cell[-1]
        if cell[0] == "stored" and seed not in pairs:
            pairs[seed] = stored_pairs(data["train"], model_path, args.n_pairs, seed)
        start = time.time()
        model, _ = train(*cell, data["train"], pairs.get(seed), model_path, args)
        validation = measure(model, data["validation"].select(range(500)), seed)
        results["cells"].append(
            {
                **dict(zip(keys, cell, strict=True)),
                "validation_accuracy": (validation["acc@t1"]["mean"] + validation["acc@t1/sampled"]["mean"]) / 2,
                "metrics": measure(model, data["test"], seed),
                "seconds": round(time.time() - start, 1),
            }
        )
        metrics = results["cells"][-1]["metrics"]
        print(*cell, f"{metrics['acc@t1']['mean']:.3f} {metrics['acc@t1/sampled']['mean']:.3f}", flush=True)
        args.results.parent.mkdir(exist_ok=True)
        temporary = args.results.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1))
        os.replace(temporary, args.results)
    args.results.write_text(json.dumps(results, indent=1))
    write_table(results)


if __name__ == "__main__":
    main()
