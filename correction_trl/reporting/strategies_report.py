"""What an evaluation leaves behind: a table of strategies, pictures over the turns, and an entry for the model card.

Plain functions, called by `recipes/evaluate.py` on the main process. They take [`~evaluation.Evaluation`] objects by
the name of their strategy, and compute nothing but what is drawn.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..data_utils import is_hub_id, public_name
from ..evaluation.evaluate import Evaluation, compare
from ..evaluation.metrics import paired_difference
from .plots import STYLE, legend_above, plot_before_after, save_figure
from .privacy import redact_secrets
from .run_metrics import (
    METRIC_DESCRIPTIONS,
    format_summary,
    is_number,
    print_summary,
    write_metrics,
    write_per_problem,
)


logger = logging.getLogger(__name__)

_COLORS = ["#2b6a99", "#c9742b", "#4d8a57", "#7d5fa3", "#a3261b", "#6b7075", "#b59a2b", "#2b9994"]
COMPUTE_CURVE = ("parallel", "parallel_corrected")  # strategies whose attempt t has a budget of 2^t samples
_RIGHT, _WRONG, _GAIN, _LOSS = "#2b6a99", "#c8ccd0", "#4d8a57", "#a3261b"


def last_turn(evaluation: Evaluation) -> int:
    """Number of attempts that an evaluation has metrics for."""
    return sum(name.startswith("acc@t") for name in evaluation.metrics)


def against(evaluations: Mapping[str, Evaluation], main: str) -> dict[str, dict[str, float]]:
    """Per other strategy, the summary of how much more often its last response is right than the main one's."""

    def last(name: str) -> list[float | None]:
        return evaluations[name].per_problem[f"acc@t{last_turn(evaluations[name])}"]

    return {name: paired_difference(last(main), last(name)) for name in evaluations if name != main}


# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------

_HEADINGS = (
    "strategy",
    "first right",
    "last right",
    "wrong → right",
    "right → wrong",
    "tokens",
    "against {main}",
    "n",
)


def strategy_rows(evaluations: Mapping[str, Evaluation], main: str, separator: str = " ") -> list[list[str]]:
    """The strategies as rows under [`strategy_headings`]; `separator` stands between a number and its interval."""
    differences = against(evaluations, main)
    rows = []
    for name, evaluation in evaluations.items():
        metrics, turns = evaluation.metrics, last_turn(evaluation)
        at = "" if turns == 2 else f"@t{turns}"
        keys = ["acc@t1", f"acc@t{turns}", f"delta(i->c){at}", f"delta(c->i){at}"]
        cells = [format_summary(key, metrics.get(key), separator=separator) for key in keys]
        tokens = metrics["tokens"]["mean"]
        cells.append(f"{tokens:.0f}" if is_number(tokens) else "-")
        cells.append(format_summary("acc@t1", differences.get(name), difference=True, separator=separator))
        rows.append([name, *cells, str(metrics["acc@t1"]["n"])])
    return rows


def strategy_headings(main: str) -> list[str]:
    """Headings of [`strategy_rows`]."""
    return [heading.format(main=main) for heading in _HEADINGS]


def print_strategies(
    evaluations: Mapping[str, Evaluation], main: str, title: str, console: Console | None = None
) -> None:
    """Print the strategies side by side, and what could not be counted. A log file gets lines as wide as needed."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=170)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in strategy_headings(main):
        table.add_column(escape(heading), justify="left" if heading == "strategy" else "right")
    separator = " " if console.width >= 150 else "\n"
    for row in strategy_rows(evaluations, main, separator):
        table.add_row(*map(escape, row))
    console.print(f"{title}; with 95% intervals over n problems", highlight=False, markup=False)
    console.print(table)
    if columns := list(dict.fromkeys(key for evaluation in evaluations.values() for key in evaluation.table)):
        measured = Table("measured", *evaluations, box=box.SIMPLE_HEAD, pad_edge=False)
        for key in columns:
            cells = [format_summary(key, evaluation.metrics.get(key)) for evaluation in evaluations.values()]
            measured.add_row(*map(escape, [key, *cells]))
        console.print(measured)
    for name, evaluation in evaluations.items():
        if found := _count_words(evaluation.counts):
            console.print(f"{name}: {found}", highlight=False, markup=False, soft_wrap=True)


def _count_words(counts: Mapping[str, int]) -> str:
    """What a reader of the table should know of what was counted; nothing where all went as usual."""
    stops = {kind.removeprefix("stop: "): count for kind, count in counts.items() if kind.startswith("stop: ")}
    found = []
    for kind, what in (
        ("unparsable", "responses without an answer that can be parsed (wrong)"),
        ("unjudged", "responses that were not judged (left out)"),
        ("truncated", "replies cut off at the limit of tokens"),
        ("missing", "problems without a result (left out)"),
    ):
        if counts[kind]:
            found.append(f"{counts[kind]} {what}")
    if len(stops) > 1:
        found.append(f"stopped: {', '.join(f'{reason} {count}' for reason, count in stops.items())}")
    return "; ".join(found)


# --------------------------------------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------------------------------------


def plot_transitions(evaluations: Mapping[str, Evaluation], path: str | os.PathLike) -> Path | None:
    """
    Draw how problems become right and wrong from one attempt to the next, one panel per evaluation (by title) that has
    two attempts. Returns `None`, with a warning, if there is nothing to draw.
    """
    panels = {title: _judged_samples(evaluation) for title, evaluation in evaluations.items()}
    panels = {title: right for title, right in panels.items() if right.size and right.shape[1] > 1}
    if not panels:
        logger.warning("No transitions were drawn: no problem has two judged attempts.")
        return None
    with matplotlib.rc_context(STYLE):
        width = sum(1.6 + 2.2 * right.shape[1] for right in panels.values())
        figure = Figure(figsize=(max(6.4, width), 4.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (title, right) in zip(axes, panels.items(), strict=True):
            _draw_transitions(axis, right)
            axis.set_title(title, pad=10)
        axes[0].set_ylabel("share of the problems (%)")
        return save_figure(figure, path)


def _judged_samples(evaluation: Evaluation) -> np.ndarray:
    """Right or wrong by judged sample and attempt."""
    right = np.asarray(evaluation.right, dtype=float)
    right = right.reshape(-1, right.shape[-1])  # (problems * samples, attempts)
    return right[~np.isnan(right).any(axis=1)]


def _draw_transitions(axis, right: np.ndarray) -> None:
    half = 0.09  # of a bar's width
    n_turns = right.shape[1]
    for t in range(n_turns):
        share = right[:, t].mean()
        axis.bar(t, share, 2 * half, color=_RIGHT, zorder=3)
        axis.bar(t, 1 - share, 2 * half, bottom=share, color=_WRONG, zorder=3)
        axis.annotate(f"{100 * share:.1f}%", (t, share), (0, 3), textcoords="offset points", ha="center", zorder=5)
    curve = np.linspace(0, 1, 60)
    smooth = curve**2 * (3 - 2 * curve)
    for t in range(n_turns - 1):
        now, later = right[:, t], right[:, t + 1]
        kept, lost = (now * later).mean(), (now * (1 - later)).mean()
        gained, still = ((1 - now) * later).mean(), ((1 - now) * (1 - later)).mean()
        # From the bottom: right stays right, right turns wrong; wrong turns right, wrong stays wrong
        for size, start, end, color, label in (
            (kept, 0, 0, _RIGHT, ""),
            (still, kept + lost + gained, kept + gained + lost, _WRONG, ""),
            (lost, kept, kept + gained, _LOSS, "right → wrong"),
            (gained, kept + lost, kept, _GAIN, "wrong → right"),
        ):
            low = start + (end - start) * smooth
            x = t + half + curve * (1 - 2 * half)
            alpha = 0.85 if label else 0.3
            axis.fill_between(x, low, low + size, color=color, alpha=alpha, linewidth=0, zorder=4 if label else 2)
        text = f"wrong → right {100 * gained:.1f}%"
        axis.annotate(text, (t + 0.5, 1.0), (0, 15), textcoords="offset points", ha="center", color=_GAIN, fontsize=9)
        text = f"right → wrong {100 * lost:.1f}%"
        axis.annotate(text, (t + 0.5, 1.0), (0, 4), textcoords="offset points", ha="center", color=_LOSS, fontsize=9)
    axis.set_xlim(-0.35, n_turns - 0.65)
    axis.set_ylim(0, 1.12)
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axis.set_xticks(range(n_turns), [f"attempt {t + 1}" for t in range(n_turns)])
    axis.tick_params(axis="x", length=0)
    axis.grid(visible=False)
    axis.spines["bottom"].set_visible(False)


def plot_accuracy_by_turn(evaluations: Mapping[str, Evaluation], path: str | os.PathLike) -> Path | None:
    """Draw how many problems are right after each attempt, one line per strategy, with 95 % intervals."""

    def points(evaluation: Evaluation) -> list[float]:
        return list(range(1, last_turn(evaluation) + 1))

    return _plot_accuracy(evaluations, path, points, "attempts", "Right after each attempt", whole=True)


def plot_inference_compute(evaluations: Mapping[str, Evaluation], path: str | os.PathLike) -> Path | None:
    """
    Draw how many problems the majority of K samples answers right, against K = 2, 4, ...: the strategies `parallel`
    and `parallel_corrected`, attempt t of which is that of 2^t samples. `None` where neither was run.
    """
    curve = {name: found for name, found in evaluations.items() if name in COMPUTE_CURVE}
    if not curve:
        return None

    def points(evaluation: Evaluation) -> list[float]:
        return [2**t for t in range(1, last_turn(evaluation) + 1)]

    return _plot_accuracy(curve, path, points, "samples per problem (K)", "Majority of K samples", whole=False)


def plot_accuracy_tokens(evaluations: Mapping[str, Evaluation], path: str | os.PathLike) -> Path | None:
    """
    Draw how many problems are right against the tokens that were generated for it, checks and feedback included: one
    line per strategy, one point per attempt.
    """

    def points(evaluation: Evaluation) -> list[float]:
        turns = range(1, last_turn(evaluation) + 1)
        return np.cumsum([evaluation.metrics[f"tokens@t{t}"]["mean"] for t in turns]).tolist()

    label = "tokens generated per problem (mean)"
    return _plot_accuracy(evaluations, path, points, label, "Right against tokens spent", whole=False)


def _plot_accuracy(evaluations, path, points, label: str, title: str, whole: bool) -> Path | None:
    shown = {name: e for name, e in evaluations.items() if is_number(e.metrics["acc@t1"]["mean"])}
    if not shown:
        logger.warning("%s was not drawn: no problem was judged.", title)
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.8), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        axis = figure.subplots()
        for index, (name, evaluation) in enumerate(shown.items()):
            x = np.asarray(points(evaluation), dtype=float)
            if whole:  # side by side, so that equal points can be told apart
                x += 0.03 * (index - (len(shown) - 1) / 2)
            summaries = [evaluation.metrics[f"acc@t{t}"] for t in range(1, len(x) + 1)]
            means, lows, highs = (
                np.array([summary[key] for summary in summaries], dtype=float) for key in ("mean", "low", "high")
            )
            errors = np.nan_to_num(np.stack([means - lows, highs - means]).clip(min=0))
            style = "--" if "oracle" in name else "-"
            color = _COLORS[index % len(_COLORS)]
            axis.errorbar(x, means, errors, color=color, linestyle=style, marker="o", capsize=2.5, label=name)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_ylabel("problems answered right (%)")
        axis.set_xlabel(label)
        if whole:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        else:
            axis.set_xlim(left=0)
        legend_above(axis, title)
        return save_figure(figure, path)


# --------------------------------------------------------------------------------------------------------------------
# Model card
# --------------------------------------------------------------------------------------------------------------------


def card_section(evaluations: Mapping[str, Evaluation], main: str, title: str, how: str) -> str:
    """The section of a model card, in Markdown, between two comments by which [`update_card`] finds it again."""
    headings = strategy_headings(main)
    lines = [_row(headings), _row(["---"] * len(headings))]
    lines += [_row(row) for row in strategy_rows(evaluations, main)]
    text = f"## Evaluation: {title}\n\n{how} Percent of all problems, with 95 % intervals.\n\n" + "\n".join(lines)
    return f"<!-- evaluation: {title} -->\n{redact_secrets(text)}\n<!-- end of evaluation -->\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def eval_results(evaluation: Evaluation, strategy: str, dataset_name: str, dataset_type: str) -> list[EvalResult]:
    """
    The metrics of one strategy, without its counts of tokens and responses, as the results of a card's `model-index`.
    `dataset_type` is the dataset's Hub id, or `"custom"`.
    """
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            metric_type=name,
            metric_name=f"{name}, {strategy}"
            + (f": {METRIC_DESCRIPTIONS[name]}" if name in METRIC_DESCRIPTIONS else ""),
            metric_value=round(summary["mean"], 6),
            metric_args={key: round(summary[key], 6) for key in ("low", "high", "n") if is_number(summary[key])},
        )
        for name, summary in evaluation.metrics.items()
        if is_number(summary["mean"]) and not name.startswith(("tokens", "responses/"))
    ]


def write_card_entry(path: str | os.PathLike, section: str, results: Sequence[EvalResult], model_name: str) -> Path:
    """Write section and metadata as a file that can be pasted into a model card."""
    path = Path(path)
    data = ModelCardData(model_name=model_name, eval_results=list(results) or None)
    path.write_text(f"---\n{data}\n---\n\n{section}", encoding="utf-8", errors="replace")
    return path


def update_card(path: str | os.PathLike, section: str, results: Sequence[EvalResult], model_name: str) -> None:
    """
    Put an evaluation into a model card that exists. An earlier one of the same title, and earlier results of the same
    names on the same dataset, are replaced; everything else stays. `model_name` is for a card that names none.
    """
    card = ModelCard.load(path)
    new = {(result.dataset_name, result.metric_name) for result in results}
    kept = [r for r in card.data.eval_results or [] if (r.dataset_name, r.metric_name) not in new]
    card.data.eval_results = [*kept, *results] or None
    card.data.model_name = card.data.model_name or model_name
    opening = section.partition("\n")[0]
    earlier = re.compile(rf"{re.escape(opening)}\n.*?<!-- end of evaluation -->\n?", re.DOTALL)
    text, n_replaced = earlier.subn(lambda _: section, card.text)
    card.text = text if n_replaced else f"{card.text.rstrip()}\n\n{section}"
    card.save(path)


# --------------------------------------------------------------------------------------------------------------------
# All of it, at the end of the recipe
# --------------------------------------------------------------------------------------------------------------------


def write_evaluation(
    output_dir: str | os.PathLike,
    *,
    before: Mapping[str, Evaluation] | None,
    after: Mapping[str, Evaluation],
    model_name: str,
    compare_with: str | None,
    dataset_name: str,
    split: str,
    how: str,
    seconds: float,
    config: Any,
    update_model_card: bool = False,
) -> dict[str, Any]:
    """
    Leave what an evaluation leaves: `metrics.json`, `per_problem.jsonl`, pictures and an entry for the model card; and
    print the tables.
    Call it on the main process only.

    Args:
        output_dir (`str` or `os.PathLike`):
            Where to.
        before (`dict[str, Evaluation]`, *optional*):
            By strategy: the model that is compared with. The first strategy is the main one.
        after (`dict[str, Evaluation]`):
            By strategy: the model.
        model_name (`str`), compare_with (`str`, *optional*), dataset_name (`str`), split (`str`):
            What was evaluated on what.
        how (`str`):
            One sentence: decoding, number of attempts.
        seconds (`float`):
            Wall-clock time of the run.
        config (`dict`):
            What the run was configured with.
        update_model_card (`bool`, *optional*, defaults to `False`):
            Whether to put the results into the `README.md` of the model's folder, which must exist.

    Returns:
        `dict`: what `metrics.json` holds: `before` and `after` of the main strategy with their paired `difference`,
        and under `strategies` what was found for each, per model.

    Raises:
        BadInput: If the model's card is to be updated and there is none.
    """
    output_dir = Path(output_dir)
    main = next(iter(after))
    model, data = public_name(model_name, "model"), public_name(dataset_name, "data")
    models = {"before": (public_name(compare_with, "model"), before)} if before is not None else {}
    models["after"] = (model, after)
    pictures = {"transitions.png": {}}
    for role, (name, evaluations) in models.items():
        title = f"{name}, {role}" if len(models) > 1 else name
        print_strategies(evaluations, main, f"{title} on {data} ({split}), {how[0].lower()}{how[1:].rstrip('.')}")
        pictures["transitions.png"][f"{main}: {title}"] = evaluations[main]
    plot_transitions(pictures["transitions.png"], output_dir / "transitions.png")
    if by_turn := {name: found for name, found in after.items() if name not in COMPUTE_CURVE}:
        plot_accuracy_by_turn(by_turn, output_dir / "accuracy_by_turn.png")
    plot_accuracy_tokens(after, output_dir / "accuracy_tokens.png")
    plot_inference_compute(after, output_dir / "inference_compute.png")

    shared = [key for key in after[main].metrics if before is None or key in before[main].metrics]
    sides = {role: {key: found[main].metrics[key] for key in shared} for role, (_, found) in models.items()}
    difference = {}
    if before is not None:
        difference = compare(before[main], after[main], shared)
        plot_before_after(sides["before"], sides["after"], output_dir / "before_after.png")
    metrics = write_metrics(
        output_dir / "metrics.json",
        before=sides.get("before", {}),
        after=sides["after"],
        difference=difference,
        seconds=seconds,
        config=config,
        model=model,
        compared_with=compare_with and public_name(compare_with, "model"),
        strategies={
            role: {
                name: {
                    "metrics": evaluation.metrics,
                    "counts": evaluation.counts,
                    f"last right, against {main}": against(found, main).get(name),
                }
                for name, evaluation in found.items()
            }
            for role, (_, found) in models.items()
        },
    )
    write_per_problem(
        output_dir / "per_problem.jsonl",
        after[main].problems,
        {
            role: {name: evaluation.per_problem for name, evaluation in found.items()}
            for role, (_, found) in models.items()
        },
    )
    title = f"{data} ({split})"
    section = card_section(after, main, title, how)
    results = eval_results(after[main], main, title, dataset_name if is_hub_id(dataset_name) else "custom")
    write_card_entry(output_dir / "card_entry.md", section, results, model)
    if update_model_card:
        update_card(Path(model_name) / "README.md", section, results, model)
    files = (path for path in output_dir.iterdir() if path.is_file() and not path.name.startswith("."))
    print_summary(metrics, files=sorted(files))
    return metrics
