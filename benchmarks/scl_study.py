"""
What does a model learn from its own self-corrections?

SCL on the embedded task and model: dialogues of two turns at temperature 1, preference pairs under each of the
prompts, against two controls with as many pairs. The first seed is run at two learning rates, the others at the one
that is better on validation. A cell that the results file already holds is not run again.

    python benchmarks/scl_study.py --seeds 0 1 2          # writes results/scl_study.jsonl and docs/pictures/scl.png
"""

import tempfile
import time

import study
import torch
from datasets import load_dataset
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.carry_addition import embedded_path, exact_match
from correction_trl.evaluation import evaluate_attempts
from correction_trl.self_correction_dpo.pairs import Transcript, make_pairs, sample_transcripts


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
    parser = study.parser(__doc__, "scl_study.jsonl")
    parser.add_argument("--problems", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    results = study.Study(args.results, ("arm", "learning_rate", "seed"))
    if not args.tables:
        run_cells(results, args)
    if results.is_committed:
        write_picture(results)
    print("\n".join(table(results)))


def run_cells(results: study.Study, args):
    torch.set_num_threads(1)
    model_path = embedded_path("tiny-carry-chat")
    data = load_dataset(embedded_path("carry_addition"))
    problems = data["train"].select(range(args.problems))
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    first_rounds = {}  # by seed: its dialogues, and the seconds that they took

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
            seed=seed,
            **study.ON_CPU,
        )
        trainer = CorrectionOptimizationTrainer(path, config, train_dataset=pairs)
        trainer.train()
        trainer.save_model(output_dir)
        return trainer.model

    def run(cell):
        arm, seed = cell["arm"], cell["seed"]
        _, pair_prompt, n_rounds, _ = next(of_arm for of_arm in ARMS if of_arm[0] == arm)
        start = time.time()
        if seed not in first_rounds:
            first_rounds[seed] = sample(model_path, seed), time.time() - start
            start = time.time()
        first_round, sampling_seconds = first_rounds[seed]
        path, counts = model_path, []
        for number in range(1, n_rounds + 1):
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
            model = train(path, pairs, arm, cell["learning_rate"], seed, output_dir)
            path = output_dir
        seconds = time.time() - start
        greedy = measure(model, data["test"], 0.0)
        return {
            "rounds": counts,
            "validation": measure(model, data["validation"], 0.0),
            "greedy": greedy,
            "sampled": measure(model, data["test"], 1.0, seed),
            "seconds": round(seconds + sampling_seconds, 1),  # the first round's dialogues are shared
            "summary": " ".join(f"{100 * greedy[name]['mean']:.1f}" for name in METRICS),
        }

    def base():
        model = AutoModelForCausalLM.from_pretrained(model_path)
        return {"greedy": measure(model, data["test"], 0.0), "sampled": measure(model, data["test"], 1.0)}

    results.begin(
        f"python benchmarks/scl_study.py --seeds {' '.join(map(str, args.seeds))}",
        base,
        problems=args.problems,
        epochs=args.epochs,
        instruction=INSTRUCTION,
    )
    first, *others = args.seeds
    rates = {arm: learning_rates for arm, _, _, learning_rates in ARMS}
    results.run(
        ({"arm": arm, "learning_rate": rate, "seed": first} for arm, of_arm in rates.items() for rate in of_arm),
        run,
        args.part,
    )
    results.run(
        ({"arm": arm, "learning_rate": best_rate(results, arm), "seed": seed} for seed in others for arm in rates),
        run,
        args.part,
    )


def best_rate(results: study.Study, arm: str) -> float:
    """The learning rate that is best on validation with the first seed, by the mean of both accuracies."""
    runs = results.where(arm=arm, seed=results.seeds[0])
    best = max(runs, key=lambda run: run["validation"]["acc@t1"]["mean"] + run["validation"]["acc@t2"]["mean"])
    return best["learning_rate"]


def best_runs(results: study.Study) -> dict[str, list[dict]]:
    """Per arm its runs at that rate."""
    arms = dict.fromkeys(run["arm"] for run in results.runs)
    return {arm: results.where(arm=arm, learning_rate=best_rate(results, arm)) for arm in arms}


def table(results: study.Study) -> list[str]:
    """For docs/self_correction_dpo.md: percent, mean ± standard deviation over seeds."""
    columns = [("greedy", name) for name in ("acc@t1", "acc@t2", "delta(i->c)", "delta(c->i)")]
    columns += [("sampled", name) for name in ("acc@t1", "acc@t2")]
    rows = [
        ["base model", "", "", *(f"{100 * study.at(results.settings['base'], *column):.1f}" for column in columns)]
    ]
    for arm, runs in best_runs(results).items():
        n_pairs = study.mean_std(sum(found["pairs"] for found in run["rounds"]) for run in runs)[0]
        numbers = [study.plus_minus(study.at(run, *column) for run in runs) for column in columns]
        rows.append([arm, f"{n_pairs:.0f}", f"{runs[0]['learning_rate']:.0e}", *numbers])
    headings = "pairs, pairs per run, lr, acc@t1, acc@t2, Δ(i→c), Δ(c→i)".split(", ")
    return study.table([*headings, "acc@t1, sampled", "acc@t2, sampled"], rows)


def write_picture(results: study.Study) -> None:
    """First and second answer before and after, one point per seed."""
    base = results.settings["base"]
    arms = best_runs(results)
    figure = Figure(figsize=(8, 0.55 * (len(arms) + 1) + 1.2), layout="constrained")
    axis = figure.subplots()
    names = ["base model", *arms]
    for row, name in enumerate(names):
        runs = [base] if name == "base model" else arms[name]
        means = {
            metric: 100 * sum(run["greedy"][metric]["mean"] for run in runs) / len(runs)
            for metric in ("acc@t1", "acc@t2")
        }
        axis.plot(list(means.values()), [row, row], color="#c4c8cc", linewidth=2, zorder=1)
        for metric, color, offset in (("acc@t1", study.BLUE, -0.12), ("acc@t2", study.ORANGE, 0.12)):
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
        f"SCL on the embedded task: {base['greedy']['acc@t1']['n']} test problems, one point per seed",
        loc="left",
        fontsize=10,
        pad=24,
    )
    axis.grid(axis="x", color="#e6e8ea")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    study.PICTURES.mkdir(exist_ok=True)
    figure.savefig(study.PICTURES / "scl.png", dpi=150)


if __name__ == "__main__":
    main()
