"""The pictures of a run: learning curves, metrics before and after training, edits per response."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .run_metrics import Summary, format_summary, is_number, metric_unit


logger = logging.getLogger(__name__)

# (title, y label, {key of the log: label}); a y label with a % sign gets a percent axis.
CORRECTION_OPTIMIZATION_PANELS = [
    ("Loss", "loss", {"loss": "loss"}),
    (
        "Log-probability",
        "nats per sequence",
        {"logps/response": "response y", "logps/correction": "correction y'"},
    ),
    ("Edits in a correction", "share of the text (%)", {"correction_edit_ratio": "edit ratio"}),
    (
        "Pairs and responses",
        "share (%)",
        {
            "corrections/unchanged": "correction = response",
            "corrections/missing": "no correction",
            "responses/truncated": "response cut off",
        },
    ),
    ("Entropy of the policy", "nats per token", {"entropy": "entropy"}),
    ("Distance to the reference", "KL (nats)", {"kl": "KL"}),
]

SCORE_PANELS = [
    ("Attempts that are right", "share (%)", {"acc@t1": "first", "acc@t2": "second"}),
    ("Changes of mind", "share (%)", {"delta(i->c)": "wrong to right", "delta(c->i)": "right to wrong"}),
    (
        "Collapse detectors",
        "share (%)",
        {"answer_changed": "second attempt differs", "edit_distance_ratio": "edit-distance ratio"},
    ),
    ("Distance to the reference", "KL (nats)", {"kl/t1": "first attempt", "kl/t2": "second attempt"}),
    (
        "Entropy of the policy",
        "nats per attempt token",
        {"entropy/t1": "first attempt", "entropy/t2": "second attempt"},
    ),
    ("Stage", "stage", {"stage": "stage"}),
]

CORRECTOR_SFT_PANELS = [
    ("Loss", "nats per token of the correction", {"loss": "loss"}),
    (
        "Mean value in the pool",
        "value",
        {"pool/value/generator": "generator", "pool/value/corrector": "corrector", "pool/value/gold": "gold"},
    ),
    (
        "Value gained",
        "value",
        {"exploration/value_gain": "by a sampled correction", "pairs/value_gain": "in the pairs"},
    ),
    (
        "Sampled corrections",
        "share (%)",
        {"exploration/improved": "improve", "exploration/worsened": "worsen", "corrector/unjudged": "not judged"},
    ),
    ("Responses in the pool", "responses", {"pool/size": "responses"}),
    ("Prompts without a pair", "share (%)", {"pool/prompts_without_pair": "without a pair"}),
]

_BEFORE, _AFTER = "#8a8f98", "#2b6a99"
_LINES = ["#2b6a99", "#c9742b", "#4d8a57", "#7d5fa3"]
_EVALUATION = {"marker": "o", "markersize": 5, "markerfacecolor": "white", "linestyle": "--"}
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, so a picture looks the same everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#6b7075",
    "axes.labelcolor": "#33373b",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e8ea",
    "xtick.color": "#4a4f54",
    "ytick.color": "#4a4f54",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def plot_learning_curves(
    log_history: Sequence[Mapping[str, float]],
    path: str | os.PathLike,
    panels: Sequence[tuple[str, str, Mapping[str, str]]] | None = None,
) -> Path | None:
    """
    Draw what a trainer logged, one small panel per question, against the optimizer step. A metric `m` is drawn with
    its evaluation points `eval_m`; what was not logged is left out.

    Args:
        log_history (`list[dict]`):
            `trainer.state.log_history`.
        path (`str` or `os.PathLike`):
            PNG file to write; its directory is created.
        panels (`Sequence[tuple[str, str, dict[str, str]]]`, *optional*):
            `(title, y label, {key of the log: label of its line})`; a y label with a % sign gets a percent axis.
            Defaults to `CORRECTION_OPTIMIZATION_PANELS`.

    Returns:
        `Path` of the picture, or `None` (with a warning) if nothing of the panels was logged: a run shorter than
        `logging_steps` must not fail at its end.
    """
    panels = CORRECTION_OPTIMIZATION_PANELS if panels is None else panels
    curves = {key: _curve(log_history, key) for _, _, keys in panels for key in keys}
    curves |= {f"eval_{key}": _curve(log_history, f"eval_{key}") for key in curves}
    logged = {key for key, (steps, _) in curves.items() if len(steps)}
    shown = []
    for title, label, keys in panels:
        keys = {key: name for key, name in keys.items() if logged & {key, f"eval_{key}"}}
        if keys:
            shown.append((title, label, keys))
    if not shown:
        logger.warning("No learning curves were drawn: nothing was logged. Lower `logging_steps`.")
        return None

    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6 * columns, 3.3 * rows), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, (title, label, keys) in zip(axes, shown, strict=False):
            scale = 100 if "%" in label else 1
            for color, (key, name) in zip(_LINES * len(keys), keys.items(), strict=False):
                steps, values = curves[key]
                _draw_curve(axis, steps, scale * values, color, name)
                steps, values = curves[f"eval_{key}"]
                axis.plot(steps, scale * values, color=color, linewidth=1, **_EVALUATION)
            if any(f"eval_{key}" in logged for key in keys):
                axis.plot([], [], color="#6b7075", linewidth=1, label="evaluation", **_EVALUATION)
            axis.set_xlabel("optimizer step")
            axis.set_ylabel(label)
            low, high = axis.get_xlim()
            if high - low < 2:  # one step only: room for whole numbers on the axis
                axis.set_xlim(round(low) - 1, round(high) + 1)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
            legend_above(axis, title)
        for axis in axes[len(shown) :]:
            axis.remove()
        if any(_window(len(curves[key][0])) > 1 for _, _, keys in shown for key in keys):
            figure.supxlabel("thin: every logged step; thick: running mean over 5% of them", fontsize=9)
        return save_figure(figure, path)


def _curve(log_history: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(entry["step"], entry[key]) for entry in log_history if "step" in entry and is_number(entry.get(key))]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps), np.asarray(values, dtype=float)


def _window(points: int) -> int:
    return points // 20 if points >= 80 else 1


def _draw_curve(axis, steps: np.ndarray, values: np.ndarray, color: str, name: str) -> None:
    window = _window(len(steps))
    if len(steps) == 0:
        return
    if window == 1:
        marker = "o" if len(steps) == 1 else None  # a line through one point is invisible
        axis.plot(steps, values, color=color, linewidth=1.6, marker=marker, label=name)
    else:
        axis.plot(steps, values, color=color, linewidth=0.7, alpha=0.35)
        mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
        centers = steps[window // 2 : window // 2 + len(mean)]  # a trailing mean would lag behind the curve
        axis.plot(centers, mean, color=color, linewidth=1.8, label=name)


def legend_above(axis, title: str) -> None:
    """Title and legend stand above the data, one below the other, so that neither can cover a point."""
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) < 2:
        axis.set_title(title)
        return
    columns = 2 if len(labels) > 3 or max(map(len, labels)) > 22 else len(labels)
    rows = math.ceil(len(labels) / columns)
    axis.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=columns, handlelength=1.6)
    axis.set_title(title, pad=9 + 15 * rows)


def plot_before_after(
    before: Mapping[str, Summary],
    after: Mapping[str, Summary],
    path: str | os.PathLike,
    keys: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Path | None:
    """
    Draw metrics before and after training as points with their 95 % intervals. Accuracies, their changes between two
    attempts, other fractions and log-probabilities each have an axis of their own, since they share no scale.

    Args:
        before (`dict[str, dict]`):
            Summary of each metric before training.
        after (`dict[str, dict]`):
            Summary of each metric after training.
        path (`str` or `os.PathLike`):
            PNG file to write; its directory is created.
        keys (`Sequence[str]`, *optional*):
            Metrics to draw, in this order. Defaults to all of `before`.
        labels (`dict[str, str]`, *optional*):
            Name to print for a metric, where its key is not wanted.

    Returns:
        `Path` of the picture, or `None` (with a warning) if no metric has a value.

    Raises:
        `ValueError`: if a key is in `before` or `after` only.
    """
    keys = list(before) if keys is None else list(keys)
    if absent := [key for key in keys if key not in before or key not in after]:
        raise ValueError(f"Cannot draw {absent}: not measured both before and after; remove them from `keys`.")
    labels = {} if labels is None else labels
    groups = {}
    for key in keys:
        if is_number(before[key]["mean"]) or is_number(after[key]["mean"]):
            groups.setdefault(_axis_label(key), []).append(key)
    if not groups:
        logger.warning("No comparison was drawn: no metric has a value before or after training.")
        return None

    rows = [len(group) for group in groups.values()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.5 + sum(0.55 * row + 0.75 for row in rows)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[row + 0.4 for row in rows]).flatten()
        for axis, (label, group) in zip(axes, groups.items(), strict=True):
            scale = 100 if metric_unit(group[0]) == "%" else 1
            for row, key in enumerate(group):
                for summaries, offset, color, fill in (
                    (before, -0.13, _BEFORE, "white"),
                    (after, 0.13, _AFTER, _AFTER),
                ):
                    _draw_interval(axis, summaries[key], row + offset, scale, color, fill)
                means = [format_summary(key, {**side[key], "low": None, "high": None}) for side in (before, after)]
                text = "  →  ".join(means)
                axis.annotate(text, (1.015, row), xycoords=("axes fraction", "data"), va="center", fontsize=9.5)
            axis.set_ylim(len(group) - 0.5, -0.5)
            axis.set_yticks(range(len(group)), [labels.get(key, key) for key in group])
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="y", visible=False)
            axis.set_xlabel(label)
            axis.margins(x=0.06)
            low, high = axis.get_xlim()
            if high - low < (least := 0.02 * max(abs(low), abs(high))):  # nothing has changed: no axis of 0.0005 + 14
                axis.set_xlim(low - least, high + least)
            axis.xaxis.set_major_locator(MaxNLocator(nbins=8))
            if axis.get_xlim()[0] < 0 < axis.get_xlim()[1]:
                axis.axvline(0, color="#6b7075", linewidth=0.8, zorder=1)
        marker = {"marker": "o", "markersize": 7, "linewidth": 2}
        handles = [
            Line2D([], [], color=_BEFORE, markerfacecolor="white", label="before", **marker),
            Line2D([], [], color=_AFTER, label="after training", **marker),
        ]
        axes[0].legend(handles=handles, loc="lower right", bbox_to_anchor=(1.01, 0.98), ncols=2)
        axes[0].set_title("Before and after training, with 95% intervals", pad=10)
        return save_figure(figure, path)


def _axis_label(key: str) -> str:
    if key.startswith("acc@") or key == "accuracy":
        return "problems answered right (%)"
    if key.startswith("delta("):
        return "change between the two answers (% of all problems)"
    unit = metric_unit(key)
    return {"%": "share (%)", "nats/token": "nats per token", "": "value"}.get(unit, unit)


def _draw_interval(axis, summary: Summary, row: float, scale: float, color: str, fill: str) -> None:
    if is_number(summary["low"]) and is_number(summary["high"]):
        ends = [scale * summary["low"], scale * summary["high"]]
        axis.plot(ends, [row, row], color=color, linewidth=2.2, solid_capstyle="butt", zorder=2)
    if is_number(summary["mean"]):
        marker = {"marker": "o", "markersize": 7.5, "markerfacecolor": fill, "markeredgewidth": 1.6}
        axis.plot([scale * summary["mean"]], [row], color=color, zorder=3, **marker)


def plot_edit_distribution(
    before_ratios: Sequence[float | None],
    after_ratios: Sequence[float | None],
    path: str | os.PathLike,
    names: tuple[str, str] = ("before", "after training"),
) -> Path | None:
    """
    Draw how much of each response has to be edited to become its correction, before and after training. Responses that
    need no edit have a bar of their own: a mean hides whether all improve a little or some become right.

    Args:
        before_ratios (`Sequence[float | None]` of shape `(n,)`):
            [`metrics.edit_ratio`] of each problem before training, in [0, 1]; `None` and NaN are left out.
        after_ratios (`Sequence[float | None]` of shape `(m,)`):
            The same after training.
        path (`str` or `os.PathLike`):
            PNG file to write; its directory is created.
        names (`tuple[str, str]`, *optional*, defaults to `("before", "after training")`):
            What the two sides are called; a side without values is not drawn.

    Returns:
        `Path` of the picture, or `None` (with a warning) if neither side has a value.

    Raises:
        `ValueError`: if a ratio is outside [0, 1].
    """
    sides = {}
    for name, ratios in zip(names, (before_ratios, after_ratios), strict=True):
        ratios = np.asarray(ratios, dtype=float)
        ratios = ratios[~np.isnan(ratios)]
        if len(ratios) and not (0 <= ratios.min() and ratios.max() <= 1):
            raise ValueError(f"An edit ratio {name} is outside [0, 1]; compute the ratios with `metrics.edit_ratio`.")
        sides[name] = ratios
    if not any(map(len, sides.values())):
        logger.warning("No distribution of edits was drawn: no response has a correction.")
        return None

    # The smallest round width with which ten bins reach the largest ratio, so that small edits are told apart as well.
    largest = max(ratios.max() for ratios in sides.values() if len(ratios))
    width = next(width for width in (1, 2, 5, 10) if 10 * width >= 100 * largest - 1e-9)
    names = ["no edit"] + [
        f"{'up to ' if low == 0 else f'{low}-'}{low + width}" for low in range(0, 10 * width, width)
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        axis = figure.subplots()
        offsets = (-0.2, 0.2) if all(map(len, sides.values())) else (0, 0)
        for (name, ratios), offset, color in zip(sides.items(), offsets, (_BEFORE, _AFTER), strict=True):
            if len(ratios) == 0:
                continue
            # 0 has its own bin; the others are closed on the right: (0, w], (w, 2w], ...
            bins = np.where(ratios == 0, 0, np.ceil(100 * ratios / width - 1e-9).clip(1, 10)).astype(int)
            shares = np.bincount(bins, minlength=11) / len(ratios)
            label = f"{name} (mean {100 * ratios.mean():.1f}%, n = {len(ratios)})"
            axis.bar(np.arange(11) + offset, shares, width=0.38, color=color, label=label)
        axis.set_xticks(range(11), names)
        axis.tick_params(axis="x", length=0)
        axis.grid(axis="x", visible=False)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_xlabel("edits from the response to its correction (% of the longer text)")
        axis.set_ylabel("share of the problems (%)")
        legend_above(axis, "Edits needed per problem")
        return save_figure(figure, path)


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png", facecolor="white")
    return path
