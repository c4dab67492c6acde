"""
Does a length prior draw the policy's responses to the lengths that it likes, shorter and longer ones?

The base is the embedded model, taught to answer every prompt with random digits of a varying number (13.7 tokens with
their end, on average). The teacher is indifferent to length: its correction is another sample of the base, drawn
independently of the response. So nothing but the prior can move the lengths. Each cell is one on-policy run of 60
updates; a cell that the results file already holds is not run again. Beside each stands where the loss leads a policy
that can have any lengths, computed without a model.

    python benchmarks/length_prior_study.py   # writes results/length_prior_study.jsonl, docs/length_prior_study.md
"""

import random
import tempfile

import study
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.carry_addition import embedded_path
from correction_trl.correction_optimization.correction_optimization_config import DEFAULTS
from correction_trl.correction_optimization.length_prior import make_length_prior
from correction_trl.correction_optimization.losses import (
    length_prior_anchor_weights,
    length_prior_score_term,
    linear_loss,
    sigmoid_loss,
)
from correction_trl.policy.generation import Sampler
from correction_trl.policy.tokenization import tokenize_prompt


TABLE = study.ROOT / "docs" / "length_prior_study.md"
IDENTITY = ("loss", "form", "weight", "mean", "nll_weight", "seed")
MEAN, SPREAD, MOST = 13.7, 3.5, 40
PRIOR_STD = 4.0
# Loss, form of the prior, its weight and means (None: without a prior), and the weight of the anchor on corrections. A
# margin of the sigmoid loss counts beta times: its prior needs more weight
ARMS = [
    *(("linear", "attract", 1.0, mean, 0.0) for mean in (None, 6, 22)),
    *(("linear", "attract", 2.0, mean, None) for mean in (6, 22)),
    ("sigmoid", "attract", 1.0, None, 0.0),
    *(("sigmoid", "attract", 4.0, mean, 0.0) for mean in (6, 22)),
    *(("sigmoid", "attract", 4.0, mean, None) for mean in (6, 22)),
    *(("sigmoid", "product", 4.0, mean, 0.0) for mean in (6, 22)),
]


def train_base(prompts: Dataset, folder: str) -> None:
    """Answers of random digits, whose number is normally distributed."""
    draw = random.Random(0)

    def with_answer(row):
        n_digits = min(max(round(draw.gauss(MEAN, SPREAD)), 2), 28) - 1
        digits = "".join(draw.choice("0123456789") for _ in range(n_digits))
        return {"completion": [{"role": "assistant", "content": digits}]}

    set_seed(0)
    args = SFTConfig(tempfile.mkdtemp(), max_steps=250, per_device_train_batch_size=128, learning_rate=2e-3,
                     warmup_steps=10, seed=0, **study.ON_CPU)  # fmt: skip
    trainer = SFTTrainer(embedded_path("tiny-carry-chat"), args=args,
                         train_dataset=prompts.map(with_answer, remove_columns=["answer"]))  # fmt: skip
    trainer.train()
    trainer.save_model(folder)
    trainer.processing_class.save_pretrained(folder)


def fixed_point(loss: str, weight: float, mean: float, nll_weight: float, beta: float) -> float:
    """
    The mean length at which the expected gradient is zero, of a policy over lengths alone: y from the policy, y' from
    the base. Descends, with steps scaled by how often a length occurs, until no gradient is left.
    """
    lengths = torch.arange(2, 29)
    base = torch.softmax(-0.5 * ((lengths.double() - MEAN) / SPREAD) ** 2, 0)
    prior = make_length_prior({"name": "normal", "mean": mean, "std": PRIOR_STD, "weight": weight})
    offsets = torch.tensor(prior(lengths.tolist())).double()
    logits = base.log().requires_grad_()
    gap = offsets[None, :] - offsets[:, None]
    anchors = nll_weight * length_prior_anchor_weights(gap)
    largest = 2 * nll_weight + (1 if loss == "linear" else beta)  # gradient of one pair
    for _ in range(20_000):
        log_probs = torch.log_softmax(logits, 0)
        policy = log_probs.exp().detach()
        # Rows are y', columns y
        if loss == "linear":
            losses = linear_loss(log_probs[None, :], log_probs[:, None])
            losses = losses + length_prior_score_term(log_probs[None, :], gap)
        else:
            scores = log_probs - base.log() + offsets
            losses = sigmoid_loss(scores[:, None] - scores[None, :], beta)
        losses = losses - anchors * log_probs[:, None]
        (gradient,) = torch.autograd.grad((base[:, None] * policy[None, :] * losses).sum(), logits)
        with torch.no_grad():
            logits -= gradient / (largest * torch.maximum(policy, base))
        if gradient.abs().max() < 1e-6:
            return (policy * lengths).sum().item()
    raise ArithmeticError(f"No fixed point was found for {loss}, weight {weight}, mean {mean}, anchor {nll_weight}.")


def sample(model, tokenizer, prompts: list, seed: int) -> tuple[list[str], list[int]]:
    sampler = Sampler(model, tokenizer, MOST, temperature=1.0, seed=seed, batch_size=500)
    found = sampler([tokenize_prompt(tokenizer, prompt)[1] for prompt in prompts])
    return found.texts, [len(ids) for ids in found.ids]


def main():
    parser = study.parser(__doc__, "length_prior_study.jsonl")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()
    results = study.Study(args.results, IDENTITY)
    if not args.tables:
        run_cells(results, args)
    if results.is_committed and results.runs:
        write_picture(results)
        write_table(results)


def run_cells(results: study.Study, args):
    torch.set_num_threads(1)
    data = load_dataset(embedded_path("carry_addition"))
    prompts, held_out = data["train"].select_columns(["prompt", "answer"]), data["test"]["prompt"][:1000]
    folder = tempfile.mkdtemp()
    train_base(prompts, folder)
    tokenizer, base = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    corrections, lengths = sample(base, tokenizer, data["train"]["prompt"][:4000], seed=1)
    base_length = sum(lengths) / len(lengths)

    def run(cell):
        set_seed(cell["seed"])
        draw = random.Random(cell["seed"])

        def teacher(prompts, responses, **columns):
            return draw.choices(corrections, k=len(responses))

        prior = {"name": "normal", "std": PRIOR_STD, **{key: cell[key] for key in ("mean", "weight", "form")}}
        config = CorrectionOptimizationConfig(
            tempfile.mkdtemp(),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            warmup_steps=5,
            seed=cell["seed"],
            loss_type=cell["loss"],
            reference_free=cell["loss"] == "linear",
            nll_weight=cell["nll_weight"],
            length_prior=None if cell["mean"] is None else prior,
            max_completion_length=MOST,
            max_length=None,
            **study.ON_CPU,
        )
        trainer = CorrectionOptimizationTrainer(folder, config, train_dataset=prompts, teacher=teacher)
        trainer.train()
        _, after = sample(trainer.model, tokenizer, held_out, seed=2)
        curve = [entry["lengths/response"] for entry in trainer.state.log_history if "lengths/response" in entry]
        length = sum(after) / len(after)
        return {"length": length, "curve": curve, "summary": f"{base_length:.1f} -> {length:.1f}"}

    results.begin("python benchmarks/length_prior_study.py", lambda: {"length": base_length}, steps=args.steps,
                  batch_size=args.batch_size, learning_rate=args.learning_rate, prior_std=PRIOR_STD)  # fmt: skip
    cells = (dict(zip(IDENTITY, (*arm, seed), strict=True)) for arm in ARMS for seed in args.seeds)
    results.run(cells, run, args.part)


def write_picture(results: study.Study):
    import matplotlib.pyplot as plt

    base = results.settings["base"]["length"]
    panels = [
        ("linear", "attract", 1.0, 0.0, "linear, no anchor"),
        ("linear", "attract", 2.0, None, "linear, defaults"),
        ("sigmoid", "attract", 4.0, 0.0, "sigmoid, no anchor"),
        ("sigmoid", "attract", 4.0, None, "sigmoid, defaults"),
        ("sigmoid", "product", 4.0, 0.0, "sigmoid, `form: product`"),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 3.4), sharey=True)
    for axis, (loss, form, weight, nll_weight, title) in zip(axes, panels, strict=True):
        study.tidy(axis, title=title)
        for mean, color in ((6, study.BLUE), (22, study.ORANGE), (None, study.GREY)):
            arm = {"loss": loss, "form": form, "weight": 1.0 if mean is None else weight, "nll_weight": nll_weight}
            runs = results.where(**arm, mean=mean)
            for run in runs:
                xs = [10 * (i + 1) for i in range(len(run["curve"]))]
                axis.plot([0, *xs], [base, *run["curve"]], color=color, alpha=0.8, linewidth=1.3)
            if mean is not None and runs:
                axis.axhline(mean, color=color, linestyle=":", linewidth=1)
        axis.set_xlabel("update")
    axes[0].set_ylabel("mean length of responses")
    axes[0].set_ylim(0, 30)
    study.save(figure, "length_prior.png")


def write_table(results: study.Study):
    base, settings = results.settings["base"]["length"], results.settings
    lines = [
        "# Does a length prior draw responses to the lengths that it likes?",
        "",
        f"The base answers with random digits of a varying number, {base:.1f} tokens with their end on average. The "
        "teacher is indifferent to length: its correction is another sample of the base. So nothing but the prior can "
        f"move the lengths. {settings['steps']} on-policy updates of {settings['batch_size']} prompts, learning rate "
        f"{settings['learning_rate']:g}; normal prior with a standard deviation of {settings['prior_std']:g} tokens; "
        f"mean length of 1,000 new samples, mean ± standard deviation over seeds {results.seeds}, and the share of "
        "the way from the base to the prior's mean. *Computed*: where the expected gradient of the loss is zero, for "
        "a policy that can have any lengths (no model). The runs end there: they are not on their way to the prior's "
        "mean. Written by `python benchmarks/length_prior_study.py` from "
        "`results/length_prior_study.jsonl`.",
        "",
    ]

    def cell(loss, form, weight, mean, nll_weight):
        runs = results.where(loss=loss, form=form, weight=weight, mean=mean, nll_weight=nll_weight)
        if not runs:
            return ""
        found, spread = study.mean_std(run["length"] for run in runs)
        if mean is None:
            return f"{found:.1f} ± {spread:.1f}"
        way = f"{100 * (found - base) / (mean - base):.0f} %"
        if form == "attract":
            beta, anchor = DEFAULTS[loss]
            anchor = anchor if nll_weight is None else nll_weight
            way += f"; computed {fixed_point(loss, weight, mean, anchor, beta):.1f}"
        return f"{found:.1f} ± {spread:.1f} ({way})"

    rows = []
    for loss, form, weight, nll_weight in dict.fromkeys((arm[0], arm[1], arm[2], arm[4]) for arm in ARMS):
        anchor = "the loss's own" if nll_weight is None else f"{nll_weight:g}"
        cells = [cell(loss, form, weight, mean, nll_weight) for mean in (None, 6, 22)]
        rows.append([loss, form, f"{weight:g}", anchor, *cells])
    headings = ["loss", "form", "weight", "anchor", "no prior", "prior at 6", "prior at 22"]
    lines += study.table(headings, rows)
    lines += ["", "![Mean length of the responses during training](pictures/length_prior.png)"]
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
