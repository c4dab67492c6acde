"""
The losses of correction optimization at two lengths of response: which `beta` and which anchor keep the model?

The embedded task (responses of 14 tokens), and the same with the answer written eleven times, one below the other (154
tokens), which the embedded model is first taught: its mistakes stay its own, and each is copied. Stored pairs, where a
loss can ruin a model: wrong responses of the base, sampled once, with all wrong digits corrected, used for several
epochs. Each cell is one training run; a cell
that the results file already holds is not run again.

    python benchmarks/two_lengths_study.py --seeds 0 1 2
    # writes results/two_lengths_study.jsonl and docs/two_lengths_study.md
"""

import random
import tempfile

import study
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.carry_addition import embedded_path
from correction_trl.evaluation import evaluate_corrections


TABLE = study.ROOT / "docs" / "two_lengths_study.md"
IDENTITY = ("n_lines", "loss", "beta", "nll_weight", "seed")
LINES = {1: "14 tokens", 11: "154 tokens"}
CONTROL = "sft"
# The middle of the grid: where the preference term has the same share of an edited token's gradient under each loss
GRID = {
    "linear": (0.1, 2.4),
    "sigmoid": (0.3, 0.36),
    "hinge": (0.3, 0.72),
    "ipo": (0.3, 8.0),
    "dpop": (0.3, 0.36),
    "cpl": (0.3, 0.36),
    "ddpo": (0.5, 3.0),
}
NEIGHBOURS = ((1, 1), (1, 1 / 4), (1, 4), (1 / 3, 1))  # shares of beta and of the anchor
METRICS = ("acc@t1", "acc@t1/sampled", "logps/correction")


def problems(n_rows: int, n_lines: int, seed: int) -> Dataset:
    """Sums with chains of nines."""
    draw = random.Random(seed)
    rows = []
    for _ in range(n_rows):
        a = [draw.randrange(10) for _ in range(12)]
        b = [9 - digit if draw.random() < 0.5 else draw.randrange(10) for digit in a]
        a, b = ("".join(map(str, digits)) for digits in (a, b))
        answer = f"{int(a) + int(b):013d}"
        rows.append({"prompt": [{"role": "user", "content": f"{a} + {b} ="}], "answer": "\n".join([answer] * n_lines)})
    return Dataset.from_list(rows)


def teacher(prompts, responses, answer, **columns):
    return list(answer)


def share_of_right_lines(completions, answer, **columns):
    values = []
    for text, gold in zip(completions, answer, strict=True):
        found, gold = (text if isinstance(text, str) else text[-1]["content"]).split("\n"), gold.split("\n")
        values.append(sum(a == b for a, b in zip(found, gold, strict=False)) / len(gold))
    return values


def train_base(n_lines: int, folder: str) -> None:
    """The embedded model, for one line as it is."""
    if n_lines == 1:
        AutoModelForCausalLM.from_pretrained(embedded_path("tiny-carry-chat")).save_pretrained(folder)
        AutoTokenizer.from_pretrained(embedded_path("tiny-carry-chat")).save_pretrained(folder)
        return
    set_seed(0)
    rows = problems(32 * 200, n_lines, seed=1)
    rows = rows.map(lambda row: {"completion": [{"role": "assistant", "content": row["answer"]}]})
    args = SFTConfig(tempfile.mkdtemp(), max_steps=200, per_device_train_batch_size=32, learning_rate=1e-3,
                     warmup_steps=20, max_length=None, seed=0, **study.ON_CPU | {"logging_steps": 100})  # fmt: skip
    trainer = SFTTrainer(embedded_path("tiny-carry-chat"), args=args, train_dataset=rows.remove_columns(["answer"]))
    trainer.train()
    trainer.save_model(folder)
    trainer.processing_class.save_pretrained(folder)


def cells(seeds):
    """Fine-tuning on the corrections, each loss at the middle of its grid and the default one around it, with every
    seed; the others around theirs with the first seed alone."""
    for seed in seeds:
        for n_lines in (11, 1):
            yield n_lines, CONTROL, 0.0, 1.0, seed
            for loss in GRID:
                around = NEIGHBOURS if loss == "sigmoid" or seed == min(seeds) else NEIGHBOURS[:1]
                for beta_share, anchor_share in around:
                    if beta_share == 1 or loss != "linear":
                        beta, nll_weight = GRID[loss]
                        yield n_lines, loss, round(beta_share * beta, 3), anchor_share * nll_weight, seed


def main():
    parser = study.parser(__doc__, "two_lengths_study.jsonl", seeds=(0,))
    parser.add_argument("--bases", default=None, help="folder that keeps the bases")
    args = parser.parse_args()
    results = study.Study(args.results, IDENTITY)
    if not args.tables:
        run_cells(results, args)
    if results.is_committed and results.runs:
        write_table(results)


def run_cells(results: study.Study, args):
    import os

    torch.set_num_threads(1)
    bases, pairs = args.bases or tempfile.mkdtemp(), {}
    held_out = {n_lines: problems(300, n_lines, seed=2) for n_lines in LINES}

    def measure(model, tokenizer, dataset, n_lines, n_examples=0):
        return evaluate_corrections(model, tokenizer, dataset, teacher, share_of_right_lines, batch_size=150,
                                    max_completion_length=14 * n_lines + 2, n_examples=n_examples)  # fmt: skip

    def load(n_lines):
        folder = f"{bases}/{n_lines}"
        if not os.path.isdir(folder):
            train_base(n_lines, folder)
        return folder, AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def base():
        found = {}
        for n_lines in LINES:
            _, model, tokenizer = load(n_lines)
            metrics = measure(model, tokenizer, held_out[n_lines], n_lines).metrics
            found[str(n_lines)] = {name: metrics[name]["mean"] for name in METRICS}
            print(n_lines, found[str(n_lines)], flush=True)
        return found

    def run(cell):
        n_lines, seed = cell["n_lines"], cell["seed"]
        folder, model, tokenizer = load(n_lines)
        if n_lines not in pairs:
            n_pairs = 2000 if n_lines == 1 else 400
            found = measure(model, tokenizer, problems(4 * n_pairs, n_lines, seed=3), n_lines, n_examples=n_pairs)
            pairs[n_lines] = Dataset.from_list(found.examples)
        set_seed(seed)
        config = CorrectionOptimizationConfig(
            tempfile.mkdtemp(),
            max_steps=60,
            per_device_train_batch_size=128 if n_lines == 1 else 16,
            learning_rate=1e-4,
            warmup_steps=5,
            seed=seed,
            loss_type=cell["loss"],
            **({} if cell["loss"] == CONTROL else {"beta": cell["beta"], "nll_weight": cell["nll_weight"]}),
            reference_free=cell["loss"] in ("linear", "cpl"),
            max_length=None,
            **study.ON_CPU,
        )
        trainer = CorrectionOptimizationTrainer(folder, config, train_dataset=pairs[n_lines])
        trainer.train()
        metrics = measure(trainer.model, tokenizer, held_out[n_lines], n_lines).metrics
        found = {name: metrics[name]["mean"] for name in METRICS}
        return {"metrics": found, "summary": " ".join(f"{value:.3f}" for value in found.values())}

    results.begin("python benchmarks/two_lengths_study.py --seeds 0 1 2", base)
    results.run((dict(zip(IDENTITY, cell, strict=True)) for cell in cells(args.seeds)), run, args.part)


def write_table(results: study.Study):
    base = results.settings["base"]
    lines = [
        "# Two lengths of response: beta and anchor of each loss",
        "",
        "The embedded task (14 tokens), and with the answer written eleven times (154 tokens); stored pairs, 60 "
        f"updates at 1e-4 of 128 and 16 pairs, seeds {results.seeds}. Share of right lines, greedy / sampled, and "
        "log π(y'|x) in nats, of the whole correction. `linear` and `cpl` without the reference, the others relative "
        "to it. `nll_weight` is that of the sum over the tokens (of their mean in `ipo` and `ddpo`). "
        "The defaults are, of each loss's three anchors at its larger `beta`, the smallest whose mean is within two "
        "points of the loss's best. Coarse: few seeds, one learning rate, 300 problems (a standard error of 2 to 3 "
        "points); with gold corrections, where more of the anchor is more fine-tuning on the right answer; and the "
        "154 tokens are 14 and their copies, so that the later lines cost little. Written by "
        "`python benchmarks/two_lengths_study.py --seeds 0 1 2` from "
        "`results/two_lengths_study.jsonl`.",
        "",
    ]

    def cell(metrics):
        greedy, sampled = 100 * metrics["acc@t1"], 100 * metrics["acc@t1/sampled"]
        return f"{greedy:.1f} / {sampled:.1f}, {metrics['logps/correction']:.2f}"

    rows = [["base model", "", "", *(cell(base[str(n)]) for n in LINES), "", ""]]
    wanted = dict.fromkeys((run["loss"], run["beta"], run["nll_weight"]) for run in results.runs)
    for loss, beta, nll_weight in sorted(wanted):
        row = [loss, str(beta) if loss not in ("linear", CONTROL) else "", str(nll_weight) if loss != CONTROL else ""]
        accuracies = []
        for n_lines in LINES:
            runs = results.where(n_lines=n_lines, loss=loss, beta=beta, nll_weight=nll_weight)
            means = {name: sum(run["metrics"][name] for run in runs) / len(runs) for name in METRICS} if runs else None
            row.append(cell(means) if means else "not run")
            accuracies += [100 * means[name] for name in METRICS[:2]] if means else [float("nan")]
        rows.append([*row, f"{sum(accuracies) / len(accuracies):.1f}", str(len(runs))])
    lines += study.table(["loss", "beta", "`nll_weight`", *LINES.values(), "mean of the four", "seeds"], rows)
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
