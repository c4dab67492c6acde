"""
Which losses of correction optimization are safe, and which beat plain supervised fine-tuning on the corrections?

Every loss, with and without the NLL anchor, on-policy and on stored pairs, against TRL's `SFTTrainer` on the same
prompts with the corrections as completions (the control), all from the embedded base model and with the same number of
prompts and updates. Each cell is one training run; a cell that the results file already holds is not run again.

    python benchmarks/loss_study.py --seeds 0 1 2          # writes results/loss_study.jsonl and docs/loss_study.md
"""

import tempfile

import study
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.carry_addition import embedded_path, exact_match, one_digit_teacher, right_answer_teacher
from correction_trl.evaluation import evaluate_corrections


TABLE = study.ROOT / "docs" / "loss_study.md"
IDENTITY = ("data", "loss", "nll_weight", "learning_rate", "seed")

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
    "sft": {"loss_type": "sft"},
    "sft, credit from_edit": {"loss_type": "sft", "credit": "from_edit"},
    "sft, credit edits": {"loss_type": "sft", "credit": "edits"},
    "sigmoid, credit from_edit": {"loss_type": "sigmoid", "beta": 0.3, "credit": "from_edit"},
    "sigmoid, credit edits": {"loss_type": "sigmoid", "beta": 0.3, "credit": "edits"},
    "linear, credit edits": {"loss_type": "linear", "reference_free": True, "credit": "edits"},
}
# Every y' of the task has so many tokens. The study names the anchor's weight for the mean over them; `nll_weight` is
# that of their sum, so many times smaller (but for `ipo` and `ddpo`, whose anchors are means)
N_TOKENS = 14
# Loss and weights of the NLL anchor, per token
CREDIT = {
    "sft": (0.0,),
    "sft, credit from_edit": (0.0,),
    "sft, credit edits": (0.0,),
    "sigmoid, credit from_edit": (5.0,),
    "sigmoid, credit edits": (5.0,),
}
ONE_RATE = {*CREDIT, "linear, credit edits"}  # at 4e-4 alone, the better one for every other loss
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
    **CREDIT,
    "linear, credit edits": (0.0,),
}
STORED = {
    "linear": (0.0, 0.5),
    "sigmoid": (0.0, 0.5, 1.0, 5.0),
    "sigmoid, reference-free": (0.0, 0.5),
    "dpop": (0.0, 0.5),
    **CREDIT,
}
# With a teacher that corrects only one wrong digit of a response, so that y' keeps the other mistakes
ONE_DIGIT = {
    "linear": (0.0,),
    "sigmoid": (0.0, 0.5),
    "hinge": (0.5,),
    "ddpo": (0.5,),
    **CREDIT,
    "linear, credit edits": (0.0,),
}
CONTROL = "SFT on the corrections"
METRICS = ("acc@t1", "acc@t1/sampled", "correction_edit_ratio", "correction_amount", "logps/correction")


def cells(seeds):
    """Every run of the study, as a tuple of its `IDENTITY`."""
    for seed in seeds:
        for learning_rate in (2e-4, 4e-4):
            yield "on-policy", CONTROL, 1.0, learning_rate, seed
            for loss, nll_weights in ON_POLICY.items():
                if learning_rate == 4e-4 or loss not in ONE_RATE:
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
        pairs += [example for example in found.examples if example["response"]]  # one may end at once
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
        "seed": seed,
        **study.ON_CPU,
    }
    if loss == CONTROL and data == "one digit":
        # y' depends on y here, so the control, too, has to sample: the anchor alone, on every pair
        config = CorrectionOptimizationConfig(
            **common,
            loss_type="sigmoid",
            beta=1e-9,
            nll_weight=nll_weight / N_TOKENS,
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
        if loss not in ("ipo", "ddpo"):
            nll_weight = nll_weight / N_TOKENS
        config = CorrectionOptimizationConfig(
            **common,
            **LOSSES[loss],
            nll_weight=nll_weight,
            max_completion_length=16,
            max_length=None,
            mask_truncated_completions=False,
        )
        trainer = CorrectionOptimizationTrainer(
            model_path,
            config,
            train_dataset=pairs if data == "stored" else prompts,
            teacher={"stored": None, "one digit": one_digit_teacher}.get(data, right_answer_teacher),
        )
    trainer.train()
    return trainer.model, trainer.processing_class


def write_table(results: study.Study):
    """Mean over seeds, with the spread between them."""
    settings, base = results.settings, results.settings["base"]["metrics"]
    lines = [
        "# Which losses are safe, and which beat the control",
        "",
        f"Embedded task and base model; {settings['steps']} updates of {settings['batch_size']} prompts, linear "
        f"schedule; {base['acc@t1']['n']} test problems; mean ± standard deviation over seeds {results.seeds}. "
        "`lr` is, in the first table, the better of 2e-4 and 4e-4 (by the mean of greedy and sampled accuracy on 500 "
        "validation problems; `sft` and those with credit at 4e-4 alone); in the others one rate was run. Unchanged "
        "kept: `unchanged_pairs: keep`. The control "
        "is TRL's `SFTTrainer` on the same prompts with the corrections as completions. Sorted by the sum of both "
        "accuracies. What follows is in [correction_optimization.md](correction_optimization.md). Written by "
        "`python benchmarks/loss_study.py` from `results/loss_study.jsonl`.",
        "",
    ]
    for data, title in (
        ("on-policy", "On-policy: responses sampled from the current policy, all wrong digits corrected"),
        ("one digit", "On-policy, with a teacher that corrects one wrong digit at a time"),
        ("stored", f"Stored pairs: {settings['n_pairs']} wrong responses of the base model, used for several epochs"),
    ):
        groups = {}
        for run in results.where(data=data):
            of_loss = groups.setdefault((run["loss"], run["nll_weight"]), {})
            of_loss.setdefault(run["learning_rate"], []).append(run)
        rows = [
            ["base model", "", "", *(f"{100 * base[name]['mean']:.1f}" for name in ("acc@t1", "acc@t1/sampled")),
             f"{100 * base['correction_edit_ratio']['mean']:.1f} %", f"{base['logps/correction']['mean']:.2f}"]
        ]  # fmt: skip
        headings = ["loss", "NLL anchor (of the mean)", "lr", "acc@t1 (greedy)", "acc@t1 (sampled)", "edit ratio",
                    "log π(y'\\|x)"]  # fmt: skip
        of_losses = [_row(*of_loss) for of_loss in groups.items()]
        rows += [cells for _, cells in sorted(of_losses, key=lambda row: (row[0], row[1]))]
        lines += [f"## {title}", "", *study.table(headings, rows), ""]
    TABLE.write_text("\n".join(lines))


def _row(of: tuple[str, float], by_rate: dict[float, list[dict]]) -> tuple[float, list[str]]:
    """Cells of a loss at its better rate, and what they are sorted by."""
    loss, nll_weight = of
    best = max(by_rate, key=lambda rate: study.mean_std(run["validation_accuracy"] for run in by_rate[rate])[0])
    column = {name: [study.at(run, "metrics", name) for run in by_rate[best]] for name in METRICS}
    mean = {name: study.mean_std(values)[0] for name, values in column.items()}
    control = loss == CONTROL
    cells = [f"**{loss}** (control)" if control else loss, "" if control else f"{nll_weight}", f"{best:.0e}"]
    cells += [study.plus_minus(column[name]) for name in ("acc@t1", "acc@t1/sampled")]
    cells += [f"{100 * mean['correction_edit_ratio']:.1f} %", f"{mean['logps/correction']:.2f}"]
    return -mean["acc@t1"] - mean["acc@t1/sampled"], cells


def main():
    parser = study.parser(__doc__, "loss_study.jsonl")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--n_pairs", type=int, default=2000)
    parser.add_argument("--only", choices=["on-policy", "one digit", "stored"], help="run only these cells")
    args = parser.parse_args()
    results = study.Study(args.results, IDENTITY)
    if not args.tables:
        run_cells(results, args)
    if results.is_committed:
        write_table(results)


def run_cells(results: study.Study, args):
    torch.set_num_threads(1)
    model_path, data = embedded_path("tiny-carry-chat"), load_dataset(embedded_path("carry_addition"))
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    pairs = {}

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

    def run(cell):
        seed = cell["seed"]
        if cell["data"] == "stored" and seed not in pairs:
            pairs[seed] = stored_pairs(data["train"], model_path, args.n_pairs, seed)
        model, _ = train(*cell.values(), data["train"], pairs.get(seed), model_path, args)
        validation = measure(model, data["validation"].select(range(500)), seed)
        metrics = measure(model, data["test"], seed)
        return {
            "validation_accuracy": (validation["acc@t1"]["mean"] + validation["acc@t1/sampled"]["mean"]) / 2,
            "metrics": metrics,
            "summary": f"{metrics['acc@t1']['mean']:.3f} {metrics['acc@t1/sampled']['mean']:.3f}",
        }

    results.begin(
        f"python benchmarks/loss_study.py --seeds {' '.join(map(str, args.seeds))}",
        lambda: {"metrics": measure(AutoModelForCausalLM.from_pretrained(model_path), data["test"], 0)},
        steps=args.steps,
        batch_size=args.batch_size,
        n_pairs=args.n_pairs,
    )
    wanted = (dict(zip(IDENTITY, cell, strict=True)) for cell in cells(args.seeds))
    results.run((cell for cell in wanted if args.only in (None, cell["data"])), run, args.part)


if __name__ == "__main__":
    main()
