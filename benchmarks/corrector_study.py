"""
What does a trained corrector gain, and which parts of Self-Correct does it owe that to?

Each arm is one training run of the embedded model, `--steps` updates, and its corrections of the test problems'
greedy responses; beside them the controls that spend the same number of samples without a corrector. An arm that the
results file already holds is not run again.

    python benchmarks/corrector_study.py --seeds 0 1 2

It writes results/corrector_study.jsonl, docs/corrector_study.md and docs/pictures/corrector_*.png.

A generator that the corrector was not trained with is the embedded model built from another seed:

    mkdir other && cp -r data/carry_addition other && python data/build.py --only model --seed 1 --output_dir other
    python benchmarks/corrector_study.py --other_generator other/tiny-carry-chat
"""

import tempfile
import time
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import study
import torch
from datasets import disable_progress_bars, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from correction_trl import CorrectorSFTConfig, CorrectorSFTTrainer
from correction_trl.carry_addition import embedded_path, exact_match, marked_digits, right_digits
from correction_trl.evaluation import evaluate_corrector
from correction_trl.evaluation.metrics import summarize
from correction_trl.policy.generation import Sampler
from correction_trl.policy.tokenization import tokenize_prompt


TABLES = study.ROOT / "docs" / "corrector_study.md"

NO_EXPLORATION = {"exploration_steps": 0}
# Settings that differ from Self-Correct's, and the words of the tables
ARMS = {
    "sft": (
        {"samples_per_prompt": 0, "gold_column": "answer", "show_response": False, "pair_filter": "non_decreasing"}
        | NO_EXPLORATION,
        "fine-tuning the generator on gold, same prompts and updates",
    ),
    "self_correct": ({}, "Self-Correct"),
    "feedback": ({}, "with feedback (which digits are wrong)"),
    "no_exploration": (NO_EXPLORATION, "no exploration"),
    "uniform": ({"alpha": 0.0, "beta": 0.0}, "uniform instead of proportional sampling"),
    "no_similarity": ({"beta": 0.0}, "no similarity term"),
    "longer": ({"max_steps": 200}, "twice the updates"),
    "feedback_longer": ({"max_steps": 200}, "with feedback, twice the updates"),
}
TEMPERATURES = 0.3, 0.7  # of the samples of the controls
CONTROLS = {
    "resample": (2, "a sample in place of the greedy response"),
    "majority of 2": (2, "majority of 2 samples (the first, where they differ)"),
    "majority of 3": (3, "majority of 3 samples"),
    "majority of 4": (4, "majority of 4 samples"),
    "any of 2": (2, "either of 2 samples right (**oracle**)"),
}


GENERATORS = {
    "sampled": "the same, sampled at temperature 1",
    "sft": "the same, fine-tuned on gold",
    "other": "a model built from another seed",
    "hard": "the generator of its training, on the harder test split",
}


def train(arm, seed, dataset, model_path, folder, args):
    """One arm's trained model. The arms of a seed start from one pool of the generator's samples."""
    set_seed(seed)
    pool = folder / f"pool_{seed}.parquet"
    feedback = marked_digits if arm.startswith("feedback") else None
    shared = arm != "sft" and feedback is None  # no samples; samples with feedback
    config = CorrectorSFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_completion_length=16,
        max_length=128,
        generation_batch_size=512,
        **{"exploration_steps": 50, "max_steps": args.steps, **ARMS[arm][0]},
        initial_pool=str(pool) if shared and pool.exists() else None,
        per_device_train_batch_size=64,
        learning_rate=6e-4,
        warmup_steps=10,
        seed=seed,
        **study.ON_CPU,
    )
    trainer = CorrectorSFTTrainer(
        model_path,
        config,
        train_dataset=dataset,
        value_function=right_digits,
        feedback_function=feedback,
    )
    if shared and not pool.exists():
        trainer.fill_pool()
        trainer.pool.save(pool)
    trainer.train()
    return trainer.model, trainer.state.log_history


def controls(generator, tokenizer, dataset, seed):
    """By temperature, the accuracies of what spends samples of the generator instead of corrections."""
    prompt_ids = [tokenize_prompt(tokenizer, prompt)[1] for prompt in dataset["prompt"]]

    def right(texts):
        return summarize([float(text == answer) for text, answer in zip(texts, dataset["answer"], strict=True)])

    found = {}
    for temperature in TEMPERATURES:
        sampler = Sampler(generator, tokenizer, 16, temperature, batch_size=500, seed=seed)
        rows = range(len(prompt_ids))
        samples = [sampler(prompt_ids, [(row, sample) for row in rows]).texts for sample in range(4)]
        of_temperature = {"resample": right(samples[0])}
        for n in (2, 3, 4):
            # The first of equally frequent ones
            voted = [Counter(of_one).most_common(1)[0][0] for of_one in zip(*samples[:n], strict=True)]
            of_temperature[f"majority of {n}"] = right(voted)
        gold = dataset["answer"]
        either = [answer if answer in two else two[0] for *two, answer in zip(*samples[:2], gold, strict=True)]
        of_temperature["any of 2"] = right(either)
        found[str(temperature)] = of_temperature
    return found


def mean_std(cells, *keys):
    """In percent, over seeds; of the percentages, as the committed tables were rounded."""
    values = [100 * study.at(cell, *keys) for cell in cells]
    return np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0


def write_tables(results: study.Study):
    cells = {name: results.where(arm=name) for name in [*ARMS, "controls"]}
    settings, base = results.settings, results.settings["base"]
    n = base["own corrector"]["acc@t1"]["n"]

    def plus_minus(of_arm, *keys):
        return "{:.1f} ± {:.1f}".format(*mean_std(of_arm, *keys))

    def row(label, of_arm, evaluation="test", turns=(1, 2, 3, 4)):
        gains = [cell[evaluation]["delta(t1,t2)"] for cell in of_arm]
        low, high = min(100 * g["low"] for g in gains), max(100 * g["high"] for g in gains)
        changes = " / ".join(f"{mean_std(of_arm, evaluation, f'delta({key})')[0]:.1f}" for key in ("i->c", "c->i"))
        gain = mean_std(of_arm, evaluation, "delta(t1,t2)")[0]
        numbers = [plus_minus(of_arm, evaluation, f"acc@t{turn}") for turn in turns]
        return [label, *numbers, f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]", changes]

    def table(*rows):
        corrections = ["1 correction", "2 corrections", "3 corrections"]
        return study.table(["", "alone", *corrections, "gain of the first", "i→c / c→i"], rows)

    controls = [
        [f"{label}, temperature {temperature}", str(samples), plus_minus(cells["controls"], str(temperature), name)]
        for temperature in TEMPERATURES
        for name, (samples, label) in CONTROLS.items()
    ]
    fine_tuned = plus_minus(cells["sft"], "test", "acc@t1")
    controls.append([f"{ARMS['sft'][1]} (greedy, no correction)", "1", fine_tuned])
    own = {"own corrector": base["own corrector"]}
    lines = [
        "# What a corrector gains, and from what",
        "",
        f"Embedded task and model; {settings['train_rows']} training prompts, 8 samples of the generator for each, "
        f"{settings['steps']} updates of 64 pairs, exploration every 50; {n} test problems, greedy decoding. Percent "
        f"right, mean ± standard deviation over training seeds {results.seeds}. Gains in points; in brackets the "
        "lowest and the highest end of the seeds' 95 % bootstrap intervals over problems. Written by `python "
        "benchmarks/corrector_study.py` from `results/corrector_study.jsonl`. What follows from it is in "
        "[corrector_sft.md](corrector_sft.md).",
        "",
        "## Corrections, and the same number of samples without a corrector",
        "",
        *table(
            row("the model before training as its own corrector", [own], "own corrector"),
            row("**generator + corrector**", cells["self_correct"]),
            row("generator + corrector **with feedback** (uses the gold answer)", cells["feedback"]),
            row("generator + corrector, twice the updates", cells["longer"]),
            row(
                "generator + corrector **with feedback** (uses the gold answer), twice the updates",
                cells["feedback_longer"],
            ),
            row("generator + corrector, right responses left alone by an **oracle**", cells["self_correct"], "oracle"),
        ),
        "",
        *study.table(["control", "samples", "right"], controls),
        "",
        "![Corrections and controls](pictures/corrector_controls.png)",
        "",
        "## What it owes to which part",
        "",
        *table(
            *(row(ARMS[arm][1], cells[arm]) for arm in ("self_correct", "no_exploration", "uniform", "no_similarity"))
        ),
        "",
        "![Ablations](pictures/corrector_ablations.png)",
        "",
        "## Generators that it was not trained with",
        "",
        *table(
            row("the generator of its training", cells["self_correct"]),
            *(
                row(label, cells["self_correct"], name)
                for name, label in GENERATORS.items()
                if all(name in cell for cell in cells["self_correct"])
            ),
        ),
    ]
    seconds = [cell["seconds"] for cell in cells["self_correct"]]
    cpu = [cell["cpu_seconds"] for cell in cells["self_correct"]]
    lines += [
        "",
        "![Generators](pictures/corrector_generators.png)",
        "",
        f"A training run of Self-Correct took {np.mean(cpu):.0f} seconds of CPU time on one thread, sampling included "
        f"({np.mean(seconds):.0f} seconds by the clock on a machine that others used).",
        "",
    ]
    TABLES.write_text("\n".join(lines))
    draw(cells, base)


def draw(cells, base):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def curve(axis, of_arm, label, evaluation="test", **style):
        columns = [mean_std(of_arm, evaluation, f"acc@t{turn}") for turn in (1, 2, 3, 4)]
        means, stds = zip(*columns, strict=True)
        axis.errorbar(range(4), means, yerr=stds, marker="o", capsize=3, label=label, **style)

    def finish(figure, axis, title, name, legend="lower right"):
        study.tidy(axis, title=title)
        axis.set_ylabel("right (% of the test problems)")
        axis.legend(frameon=False, fontsize=8, loc=legend)
        study.save(figure, f"corrector_{name}.png", dpi=150)
        plt.close(figure)

    corrections = {"xticks": range(4), "xlabel": "corrections"}
    figure, axis = plt.subplots(figsize=(6.8, 5))
    curve(axis, cells["self_correct"], "Self-Correct", color=study.BLUE)
    curve(axis, cells["feedback"], "with feedback (uses the gold answer)", color=study.GREEN)
    curve(axis, cells["self_correct"], "gated by an oracle", "oracle", color=study.BLUE, linestyle=":")
    curve(axis, [{"base": base["own corrector"]}], "untrained model corrects itself", "base", color=study.GREY)
    names = "resample", "majority of 2", "majority of 3", "majority of 4"
    by_temperature = [[mean_std(cells["controls"], str(t), name) for name in names] for t in TEMPERATURES]
    best = max(range(len(TEMPERATURES)), key=lambda i: by_temperature[i][-1][0])
    means, stds = zip(*by_temperature[best], strict=True)
    axis.errorbar(
        [1, 1, 2, 3], means, yerr=stds, marker="s", linestyle="", capsize=3, color=study.ORANGE,
        label=f"control: a new sample (1); majority of 2, 3, 4 (temperature {TEMPERATURES[best]})",
    )  # fmt: skip
    axis.axhline(mean_std(cells["sft"], "test", "acc@t1")[0], color=study.PURPLE, linestyle="--", linewidth=1,
                 label="control: generator fine-tuned on gold")  # fmt: skip
    axis.set(**corrections)
    finish(figure, axis, "A trained corrector, and the same compute without one", "controls", "center right")

    figure, axis = plt.subplots(figsize=(6.8, 5))
    for arm, color in zip(("self_correct", "no_exploration", "uniform", "no_similarity"),
                          (study.BLUE, study.ORANGE, study.GREEN, study.PURPLE), strict=True):  # fmt: skip
        curve(axis, cells[arm], ARMS[arm][1], color=color, alpha=0.85)
    axis.set(**corrections)
    finish(figure, axis, "Parts of Self-Correct left out", "ablations")

    figure, axis = plt.subplots(figsize=(6.8, 5))
    curve(axis, cells["self_correct"], "the generator of its training", color=study.BLUE)
    for (name, label), color in zip(
        GENERATORS.items(), (study.GREY, study.PURPLE, study.ORANGE, study.GREEN), strict=True
    ):
        if all(name in cell for cell in cells["self_correct"]):
            curve(axis, cells["self_correct"], label, name, color=color)
    axis.set(**corrections)
    finish(figure, axis, "One corrector, several generators", "generators")


def main():
    parser = study.parser(__doc__, "corrector_study.jsonl")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, "controls"], default=[*ARMS, "controls"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--train_rows", type=int, default=800)
    parser.add_argument("--test_rows", type=int, default=2000)
    parser.add_argument("--other_generator", help="folder of the embedded model built from another seed")
    parser.add_argument(
        "--models", type=Path, help="folder for pools and models of the controls; by default a new one"
    )
    args = parser.parse_args()
    results = study.Study(args.results, ("arm", "seed"))
    if not args.tables:
        run_cells(results, args)
    is_whole = all(len(results.where(arm=arm)) == len(results.seeds) for arm in [*ARMS, "controls"])
    if results.is_committed and is_whole:
        write_tables(results)


def run_cells(results: study.Study, args):
    torch.set_num_threads(1)
    disable_progress_bars()
    folder = args.models or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True, parents=True)
    model_path = embedded_path("tiny-carry-chat")
    data = load_dataset(embedded_path("carry_addition"))
    test, hard = (data[split].select(range(args.test_rows)) for split in ("test", "test_hard"))
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    generator = AutoModelForCausalLM.from_pretrained(model_path)

    def measure(corrector, generator=generator, dataset=test, feedback=None, **settings):
        return evaluate_corrector(
            corrector, tokenizer, generator, tokenizer, dataset, exact_match, feedback,
            max_completion_length=16, batch_size=500, n_examples=0, **settings,
        ).metrics  # fmt: skip

    def run(cell):
        arm, seed = cell["arm"], cell["seed"]
        if arm == "controls":
            return controls(generator, tokenizer, test, seed)
        start, cpu_start = time.time(), time.process_time()
        model, log = train(arm, seed, data["train"].select(range(args.train_rows)), model_path, folder, args)
        found = {
            "seconds": round(time.time() - start, 1),
            "cpu_seconds": round(time.process_time() - cpu_start, 1),
            "pool": {key: value for entry in log for key, value in entry.items() if key.startswith("pool/")},
        }
        if arm == "sft":
            found["test"] = measure(model, model, max_corrections=0)
            model.save_pretrained(folder / f"sft_{seed}")
        else:
            found["test"] = measure(model, feedback=marked_digits if arm.startswith("feedback") else None)
        if arm == "self_correct":
            found["oracle"] = measure(model, oracle=True)
            found["sampled"] = measure(model, temperature=1.0, seed=seed)
            found["hard"] = measure(model, dataset=hard)
            others = {"sft": folder / f"sft_{seed}", "other": Path(args.other_generator or "")}
            for name, path in others.items():
                if (path / "config.json").is_file():
                    found[name] = measure(model, AutoModelForCausalLM.from_pretrained(path))
        accuracies = (
            f"{name} {value['mean']:.3f}" for name, value in found["test"].items() if name.startswith("acc@")
        )
        return {**found, "summary": " ".join(accuracies)}

    results.begin(
        "python benchmarks/corrector_study.py --seeds 0 1 2 --other_generator other/tiny-carry-chat",
        lambda: {"own corrector": measure(generator)},
        steps=args.steps,
        train_rows=args.train_rows,
    )
    arms = [arm for arm in [*ARMS, "controls"] if arm in args.arms]
    results.run(({"arm": arm, "seed": seed} for seed in args.seeds for arm in arms), run, args.part)


if __name__ == "__main__":
    main()
