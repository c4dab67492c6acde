"""
SCoRe on the embedded task: the tables of the paper at this scale, its ablations, the inference-compute curve and more
attempts than it was trained on.

Every run starts from the embedded base model and has the settings of recipes/configs/score/quickstart.yaml, but for
what its name says. Each run is evaluated on all test problems, greedily and at temperature 1. A run that the results
file already holds is not run again.

    python benchmarks/score_study.py --seeds 0 1 2 3 4     # writes results/score_study.jsonl and docs/score_study.md

In several processes side by side: `--part 0/2` and `--part 1/2`.
"""

import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import matplotlib
import study
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from correction_trl import CorrectorSFTTrainer, SCoReTrainer
from correction_trl.carry_addition import embedded_path, exact_match
from correction_trl.evaluation import evaluate_attempts
from correction_trl.evaluation.metrics import self_correction_metrics, summarize
from correction_trl.policy.attempts import FollowUp
from correction_trl.policy.generation import Responses, Sampler
from correction_trl.policy.tokenization import tokenize_prompt


TABLES = study.ROOT / "docs" / "score_study.md"
sys.path.insert(0, str(study.ROOT / "recipes"))

# Overrides of the quickstart, by the name of the run. `turns: 1` needs the two attempts only in the evaluation.
RL_RUNS = {
    "SCoRe": {},
    "single-turn RL": {"turns": 1, "stage": "2"},
    "SCoRe without Stage I": {"stage": "2"},
    "SCoRe without the bonus": {"alpha": 0.0},
    "multi-turn RL": {"stage": "2", "alpha": 0.0},
}
# Configs of recipes/corrector_sft.py with overrides; the trained model gives both attempts. STaR in Stage II starts
# from the policy at the end of SCoRe's Stage I.
SFT_RUNS = {
    "STaR": ("star", {}),
    "STaR, with correct pairs": ("star", {"pair_filter": "non_decreasing"}),
    "Pair-SFT": ("pair_sft", {}),
    "Pair-SFT, with correct pairs": ("pair_sft", {"pair_filter": "non_decreasing"}),
    "STaR in Stage II": ("star", {}),
}
BASE = "base"
COMPARED = (BASE, "SCoRe", "single-turn RL", "Pair-SFT")  # in the pictures of inference compute and of ten attempts
INSTRUCTION = "There might be an error in the answer above. Please correct it."
# 97.5 % quantiles of Student's t by degrees of freedom
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
KEYS = ("acc@t1", "acc@t2", "delta(t1,t2)", "delta(i->c)", "delta(c->i)", "answer_changed", "edit_distance_ratio")


def train(run: str, seed: int, models: Path) -> Path:
    """One run; returns the folder of its model."""
    folder = models / f"{run.replace(' ', '_')}-{seed}"
    train_dataset = load_dataset(embedded_path("carry_addition"), split="train")
    common = {"seed": seed, "output_dir": str(folder), "disable_tqdm": True, "logging_steps": 10}
    if run in RL_RUNS:
        import score as recipe

        config, overrides = recipe.QUICKSTART, {**common, **RL_RUNS[run]}
        if run == "SCoRe":  # its Stage I is the start of "STaR in Stage II"
            overrides.update(save_strategy="steps", save_steps=50, save_only_model=True)
    else:
        import corrector_sft as recipe

        name, more = SFT_RUNS[run]
        config, overrides = recipe.QUICKSTART.with_name(f"{name}.yaml"), {**common, **more}
    arguments = [part for name, value in overrides.items() for part in (f"--{name}", str(value))]
    script_args, training_args, _ = recipe.parse_arguments(["--config", str(config), *arguments])
    if run in RL_RUNS:
        trainer = SCoReTrainer(embedded_path("tiny-carry-chat"), exact_match, training_args, train_dataset)
    else:
        stage_1 = run == "STaR in Stage II"
        trainer = CorrectorSFTTrainer(
            model=str(models / f"SCoRe-{seed}" / "checkpoint-50") if stage_1 else embedded_path("tiny-carry-chat"),
            args=training_args,
            train_dataset=train_dataset.select(range(script_args.train_rows)),
            value_function=exact_match,
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


def many_attempts(model, tokenizer, test: Dataset, n_attempts: int = 10) -> dict[str, list[dict]]:
    """
    Accuracy after each of `n_attempts` greedy attempts: in one growing conversation, and where the model is shown the
    problem and its last attempt alone. (The embedded model was never trained on rows of more than two attempts.)
    """
    found = evaluate_attempts(
        model, tokenizer, test, exact_match, INSTRUCTION, n_turns=n_attempts, max_completion_length=16, batch_size=250
    )
    sampler = Sampler(model, tokenizer, max_new_tokens=16, temperature=0.0, batch_size=500)
    follow_up = FollowUp(tokenizer, sampler.stop_ids, conversational=True)
    prompts = [tokenize_prompt(tokenizer, prompt)[1] for prompt in test["prompt"]]
    contexts, last_only = prompts, []
    for _ in range(n_attempts):
        attempts = sampler(contexts)
        values = exact_match(attempts.texts, test["answer"])
        last_only.append(summarize(values))
        contexts = [p + y + follow_up(y, INSTRUCTION) for p, y in zip(prompts, attempts.ids, strict=True)]
    return {
        "conversation": [found.metrics[f"acc@t{turn}"] for turn in range(1, n_attempts + 1)],
        "last_attempt_shown": last_only,
    }


def second_attempts(model, tokenizer, test: Dataset, firsts: Responses) -> dict:
    """Greedy second attempts after given first ones."""
    sampler = Sampler(model, tokenizer, max_new_tokens=16, temperature=0.0, batch_size=500)
    follow_up = FollowUp(tokenizer, sampler.stop_ids, conversational=True)
    contexts = [
        tokenize_prompt(tokenizer, prompt)[1] + ids + follow_up(ids, INSTRUCTION)
        for prompt, ids in zip(test["prompt"], firsts.ids, strict=True)
    ]
    first, second = (exact_match(found.texts, test["answer"]) for found in (firsts, sampler(contexts)))
    metrics = self_correction_metrics(first, second)
    return {key: metrics[key] for key in ("acc@t1", "acc@t2", "fix_rate", "delta(c->i)")}


def distribution_shift(model, base, tokenizer, test: Dataset, seed: int) -> dict:
    """Corrections of the base model's first attempts (which never change) and of the model's own, both at T = 1."""
    prompts = [tokenize_prompt(tokenizer, prompt)[1] for prompt in test["prompt"]]
    results = {}
    for name, source in (("of the base", base), ("own", model)):
        firsts = Sampler(source, tokenizer, max_new_tokens=16, batch_size=500, seed=seed)(prompts)
        results[name] = second_attempts(model, tokenizer, test, firsts)
    return results


def compute_curve(model, tokenizer, test: Dataset, seed: int, largest: int = 16, temperature: float = 0.7) -> dict:
    """Majority of 2K parallel first attempts against the majority of K second attempts, each after a first one."""
    sampler = Sampler(model, tokenizer, max_new_tokens=16, temperature=temperature, seed=seed)
    follow_up = FollowUp(tokenizer, sampler.stop_ids, conversational=True)
    prompts = [tokenize_prompt(tokenizer, prompt)[1] for prompt in test["prompt"]]
    firsts, seconds = [], []
    names = [[(row, sample) for row in range(len(prompts))] for sample in range(2 * largest)]
    for sample in range(largest):
        (first, second), _ = sampler.attempts(
            prompts, lambda turn, ids: [follow_up(one, INSTRUCTION) for one in ids], 2, names[sample]
        )
        firsts.append(first.texts)
        seconds.append(second.texts)
    for sample in range(largest, 2 * largest):
        firsts.append(sampler(prompts, names[sample]).texts)

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


ORDER = (
    BASE,
    "STaR",
    "STaR, with correct pairs",
    "Pair-SFT",
    "Pair-SFT, with correct pairs",
    "single-turn RL",
    "SCoRe",
    "SCoRe without Stage I",
    "SCoRe without the bonus",
    "multi-turn RL",
    "STaR in Stage II",
)
ABLATIONS = ("SCoRe", "single-turn RL", "SCoRe without Stage I", "SCoRe without the bonus", "STaR in Stage II")


def write_tables(results: study.Study):
    cells = {run: results.where(run=run) for run in ORDER}
    cells = {run: of_run for run, of_run in cells.items() if of_run}

    def number(of_run, *keys, sign=""):
        found = []
        for cell in of_run:
            for key in keys:
                cell = cell[key]
            found.append(100 * cell["mean"])
        summary = over_seeds(found)
        if summary["low"] is None:  # one run: the interval over problems
            return f"{summary['mean']:{sign}.1f} [{100 * cell['low']:{sign}.1f}, {100 * cell['high']:{sign}.1f}]"
        return f"{summary['mean']:{sign}.1f} [{summary['low']:{sign}.1f}, {summary['high']:{sign}.1f}]"

    def table(runs, how):
        rows = []
        for run in runs:
            if run in cells:
                of_run = cells[run]
                columns = [number(of_run, how, key, sign="+" if key.startswith("delta(t") else "") for key in KEYS[:5]]
                rows.append([f"**{run}**" if run == "SCoRe" else run, str(len(of_run)), *columns])
        return study.table(["", "seeds", "acc@t1", "acc@t2", "Δ(t1,t2)", "Δ(i→c)", "Δ(c→i)"], rows)

    n = cells[BASE][0]["greedy"]["acc@t1"]["n"]
    lines = [
        "# SCoRe and its ablations on the embedded task",
        "",
        f"{n} test problems; percent; mean over training seeds with the 95 % interval of Student's t (base: over "
        "problems). RL runs: recipes/configs/score/quickstart.yaml, 100 updates of 32 prompts with 8 rollouts each. "
        "STaR and Pair-SFT: recipes/configs/corrector_sft/, 150 updates of 64 pairs; the trained model gives both "
        "attempts. Multi-turn RL is Stage II alone and without the bonus. What follows from it is in "
        "[score.md](score.md). Written by `python benchmarks/score_study.py` from `results/score_study.jsonl`.",
        "",
        "## Greedy",
        "",
        *table(ORDER, "greedy"),
        "",
        "## Ablations, in the order of the paper's table",
        "",
        *table(ABLATIONS, "greedy"),
        "",
        "## Sampled at temperature 1",
        "",
        *table(ORDER, "sampled"),
        "",
        "## Greedy, on the harder test split",
        "",
        *table(ORDER, "hard"),
        "",
        "## Whose first attempts are corrected",
        "",
        "Share of the wrong first attempts (temperature 1) that the trained model's greedy second attempt puts right, "
        "for the base model's first attempts, which training does not change, and for the trained model's own.",
        "",
    ]
    shift = []
    for run, of_run in cells.items():
        of_run = [cell for cell in of_run if "shift" in cell]
        if of_run:
            columns = [
                number(of_run, "shift", w, key) for key in ("fix_rate", "delta(c->i)") for w in ("of the base", "own")
            ]
            shift.append([run, *columns])
    lines += [
        *study.table(
            [
                "",
                "the base's wrong attempts put right",
                "its own put right",
                "the base's right ones lost",
                "its own lost",
            ],
            shift,
        ),
        "",
        "## The same compute, with and without corrections",
        "",
        "Majority of 2K parallel first attempts, against the majority of K second attempts (each after a first one), "
        "at temperature 0.7, on 500 problems.",
        "",
        "![Inference compute](pictures/score_compute.png)",
        "",
        "## Ten attempts, trained on two",
        "",
        "Greedy. Left: the model is shown the problem and its last attempt. Right: one growing conversation; rows of "
        "more than two attempts are longer than any that the embedded model was trained on, before SCoRe or in it.",
        "",
        "![Ten attempts](pictures/score_ten_attempts.png)",
        "",
    ]
    seconds = [cell["seconds"] for cell in cells["SCoRe"]]
    lines += [
        f"A run of SCoRe with its evaluations took {min(seconds):.0f} to {max(seconds):.0f} seconds on one of two "
        "cores that others used as well.",
        "",
    ]
    TABLES.write_text("\n".join(lines))
    draw(cells)


def draw(cells):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = dict(zip(COMPARED, (study.GREY, study.BLUE, study.PURPLE, study.ORANGE), strict=True))
    n_seeds = max(len(of_run) for of_run in cells.values())

    def mean(of_run, values):
        return [100 * statistics.fmean(column) for column in zip(*map(values, of_run), strict=True)]

    def finish(figure, axes, name, **legend):
        for axis in axes:
            study.tidy(axis)
        axes[0].set_ylabel("right (% of the problems)")
        axes[0].legend(frameon=False, fontsize=8, **legend)
        study.save(figure, f"score_{name}.png")
        plt.close(figure)

    figure, axis = plt.subplots(figsize=(8.4, 4.6))
    for i, of_run in enumerate(reversed(cells.values())):
        first, second = (over_seeds([100 * cell["greedy"][f"acc@t{t}"]["mean"] for cell in of_run]) for t in (1, 2))
        axis.annotate("", (second["mean"], i), (first["mean"], i), arrowprops={"arrowstyle": "->", "color": "#8a8f98"})
        for summary, color, fill, label in (
            (first, "#8a8f98", "white", "first attempt"),
            (second, "#2b6a99", "#2b6a99", "second attempt"),
        ):
            error = 0 if summary["low"] is None else summary["high"] - summary["mean"]
            axis.errorbar(
                summary["mean"], i, xerr=error, marker="o", color=color, markerfacecolor=fill, capsize=3,
                label=label if i == 0 else None,
            )  # fmt: skip
    axis.set_yticks(range(len(cells)), list(reversed(cells)))
    axis.set_xlabel("right (% of the test problems), greedy")
    study.tidy(axis, "x", f"Two attempts, mean of {n_seeds} seeds")
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    study.save(figure, "score_attempts.png")
    plt.close(figure)

    figure, axis = plt.subplots(figsize=(6.8, 5))
    for run in COMPARED:
        if run in cells:
            of_run = [cell for cell in cells[run] if "compute" in cell]
            sizes = [2 * k for k in of_run[0]["compute"]["k"]]
            for kind, style, label in (
                ("parallel_2k", "--", "parallel first attempts"),
                ("k_corrected", "-", "half of them, each corrected once"),
            ):
                line = mean(of_run, lambda cell, kind=kind: [s["mean"] for s in cell["compute"][kind]])
                axis.plot(sizes, line, style, marker="o", color=colors[run], label=f"{run}: {label}")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, sizes)
    axis.set_xlabel("samples per problem")
    axis.set_title("Majority vote", loc="left", fontsize=11, fontweight="bold")
    finish(figure, [axis], "compute", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)

    figure, axes = plt.subplots(1, 2, figsize=(9.2, 4), sharey=True)
    titles = {"last_attempt_shown": "the last attempt is shown", "conversation": "one conversation"}
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        for run in COMPARED:
            if run in cells:
                of_run = [cell for cell in cells[run] if "ten_attempts" in cell]
                line = mean(of_run, lambda cell, kind=kind: [s["mean"] for s in cell["ten_attempts"][kind]])
                axis.plot(range(1, len(line) + 1), line, marker="o", color=colors[run], label=run)
        axis.set_xticks(range(1, 11))
        axis.set_xlabel("attempt")
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
    finish(figure, axes, "ten_attempts")


def main():
    parser = study.parser(__doc__, "score_study.jsonl", seeds=range(5))
    parser.add_argument("--runs", nargs="+", help="run only these")
    parser.add_argument("--models", type=Path, default=Path("outputs/score_study"), help="where models are kept")
    args = parser.parse_args()
    results = study.Study(args.results, ("run", "seed"))
    if not args.tables:
        run_cells(results, args)
    if results.is_committed:
        write_tables(results)


def run_cells(results: study.Study, args):
    torch.set_num_threads(1)
    data = load_dataset(embedded_path("carry_addition"))
    test, hard = data["test"], data["test_hard"]
    tokenizer = AutoTokenizer.from_pretrained(embedded_path("tiny-carry-chat"))
    base = AutoModelForCausalLM.from_pretrained(embedded_path("tiny-carry-chat")).eval()

    def run(cell):
        name, seed = cell["run"], cell["seed"]
        start = time.time()
        model = base if name == BASE else AutoModelForCausalLM.from_pretrained(train(name, seed, args.models)).eval()
        found = {"training_seconds": round(time.time() - start, 1), **measure(model, tokenizer, test, hard, seed)}
        found["shift"] = distribution_shift(model, base, tokenizer, test, seed)
        if name in COMPARED:
            found["ten_attempts"] = many_attempts(model, tokenizer, test.select(range(1000)))
            found["compute"] = compute_curve(model, tokenizer, test.select(range(500)), seed)
        found["summary"] = {key: round(100 * found["greedy"][key]["mean"], 1) for key in KEYS[:5]}
        return found

    results.begin(f"python benchmarks/score_study.py --seeds {' '.join(map(str, args.seeds))}")
    wanted = [(BASE, 0)] + [(name, seed) for seed in args.seeds for name in (*RL_RUNS, *SFT_RUNS)]
    wanted = [{"run": name, "seed": seed} for name, seed in wanted if args.runs is None or name in args.runs]
    results.run(wanted, run, args.part)


if __name__ == "__main__":
    main()
