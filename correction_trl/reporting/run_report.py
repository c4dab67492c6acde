"""What a run leaves behind for its reader: `metrics.json`, pictures, a table on the console and a model card.

Plain functions, called by the recipes on the main process once the numbers are there. They compute nothing: the
numbers come from `metrics.py`, as *summaries* `{"mean", "low", "high", "n"}`. They are written for people who were not
there: every number comes with its unit, its interval and the number of problems, and no secret and no path of the
machine gets into what is published.
"""

import dataclasses
import enum
import html
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import shlex
import sys
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rapidfuzz.distance import Levenshtein
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from correction_trl import __version__

from ..evaluation.evaluate import Evaluation
from ..evaluation.metrics import paired_difference


logger = logging.getLogger(__name__)

Summary = Mapping[str, float]  # {"mean", "low", "high", "n"}, see `metrics.summarize`

# What the known metrics mean, in the words of the card and the pictures. Other metrics appear under their own name.
METRIC_DESCRIPTIONS = {
    "acc@t1": "first answer right",
    "acc@t2": "second answer right",
    "delta(t1,t2)": "acc@t2 - acc@t1",
    "delta(i->c)": "wrong first, right second, of all problems",
    "delta(c->i)": "right first, wrong second, of all problems",
    "fix_rate": "second answer right, of the problems whose first answer was wrong",
    "edit_distance_ratio": "edit distance between the two answers / sum of their lengths",
    "answer_changed": "second answer differs from the first",
    "correction_amount": "mean log pi(y|x) - log pi(y'|x)",
    "correction_edit_ratio": "edits from the response y to its correction y' / length of the longer",
    "logps/response": "mean log pi(y|x) of the model's own response",
    "logps/correction": "mean log pi(y'|x) of the teacher's correction",
}

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
_DELETED, _INSERTED, _DELETED_FILL, _INSERTED_FILL = "#a3261b", "#1d6b33", "#fbe3e0", "#dff2e3"
_EVALUATION = {"marker": "o", "markersize": 5, "markerfacecolor": "white", "linestyle": "--"}
_STYLE = {
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


# --------------------------------------------------------------------------------------------------------------------
# metrics.json
# --------------------------------------------------------------------------------------------------------------------


def write_metrics(
    path: str | os.PathLike,
    before: Mapping[str, Summary],
    after: Mapping[str, Summary],
    seconds: float,
    config: Any,
    difference: Mapping[str, Summary] | None = None,
    **more,
) -> dict[str, Any]:
    """
    Write `metrics.json`: what was measured before and after training, and what it takes to measure it again.

    The file appears whole or not at all (it is written beside its place and renamed), it is plain JSON (NaN and
    infinity become `null`), and secrets are removed from the configuration and the command line.

    Args:
        path (`str` or `os.PathLike`):
            File to write; its directory is created.
        before (`dict[str, dict]`):
            Summary `{"mean", "low", "high", "n"}` of each metric before training; empty if only one model was
            evaluated.
        after (`dict[str, dict]`):
            The same metrics after training.
        seconds (`float`):
            Wall-clock time of the run, in seconds.
        config (`dict` or dataclass instance):
            What the run was configured with: training arguments, or a dict of several such dataclasses.
        difference (`dict[str, dict]`, *optional*):
            Summary of `after - before` problem by problem, from [`metrics.paired_difference`], for some or all
            metrics.
        **more:
            Further entries of the file, such as `teacher` or `dataset`.

    Returns:
        `dict`: what the file holds, as [`print_summary`] and [`write_model_card`] take it.

    Raises:
        `ValueError`: if `before` and `after` do not hold the same metrics, `difference` holds another one, a metric is
        not a summary, or an entry of `more` has a name that the file uses.
    """
    if before and before.keys() != after.keys():
        only_before, only_after = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
        raise ValueError(
            f"`before` and `after` must hold the same metrics; only before: {only_before}, only after: {only_after}."
            " Evaluate both with the same function."
        )
    difference = {} if difference is None else difference
    if unknown := sorted(difference.keys() - before.keys()):
        raise ValueError(
            f"`difference` holds {unknown}, which `before` and `after` lack; add them there or drop them."
        )
    for part, summaries in (("before", before), ("after", after), ("difference", difference)):
        for name, summary in summaries.items():
            if not isinstance(summary, Mapping) or not {"mean", "low", "high", "n"} <= summary.keys():
                raise ValueError(
                    f"`{part}[{name!r}]` is not a summary (mean, low, high, n); make it with `metrics.summarize`."
                )

    metrics = {
        "before": before,
        "after": after,
        "difference": difference,
        "seconds": seconds,
        "config": config,
        "versions": installed_versions(),
        "command": command_line(),
    }
    if taken := sorted(metrics.keys() & more.keys()):
        raise ValueError(f"`metrics.json` already has the entries {taken}; give yours another name.")
    metrics = _plain(metrics | more)
    _write_atomically(path, json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    return metrics


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the packages a result depends on; packages that are not installed are left out."""
    versions = {"python": platform.python_version(), "correction_trl": __version__}
    for package in ("torch", "trl", "transformers", "peft", "datasets", "accelerate", "bitsandbytes"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def command_line(argv: Sequence[str] | None = None) -> str:
    """
    The command that started this process, as one line for a shell, with secrets replaced by `<redacted>`.

    Args:
        argv (`Sequence[str]`, *optional*):
            Script and arguments, defaults to `sys.argv`.

    Returns:
        `str`: `script --argument value ...`, quoted. The launcher (`python`, `accelerate launch`) is not part of it:
        a process does not know it.
    """
    words, redact_next = [], False
    for word in sys.argv if argv is None else argv:
        name, equals, _ = word.partition("=")
        if redact_next and not word.startswith("--"):
            word = "<redacted>"
        elif equals and _is_secret_name(name):
            word = f"{name}=<redacted>"
        redact_next = not equals and word.startswith("-") and _is_secret_name(word)
        # Quoted by hand because `shlex.join` would quote the angle brackets of the placeholder.
        words.append(word if word.endswith("<redacted>") else shlex.quote(redact_secrets(word)))
    return " ".join(words)


# `eos_token`, `pad_token` and the like are vocabulary; every other name that ends in `token` is taken for a secret.
_VOCABULARY_TOKEN = re.compile(
    r"(^|[_.-])(bos|eos|pad|unk|sep|cls|mask|stop|start|begin|end|think|image|video|audio)[_-]token$", re.IGNORECASE
)
_SECRET_NAME = re.compile(
    r"(^|[_.-])(token|secret|password|passwd|passphrase|credentials?|authorization)$"
    r"|(api|access|secret|private|auth)[_-]?key$|(^|[_-])secret[_-]",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bsk-[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic and those who follow them
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{30,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+"  # a JSON web token
    r"|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password in an address
    r"|(?<=[?&]token=)[^&\s#]+|(?<=[?&]key=)[^&\s#]+|(?<=[?&]api_key=)[^&\s#]+|(?<=[?&]sig=)[^&\s#]+"
)


def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None and _VOCABULARY_TOKEN.search(name) is None


def redact_secrets(text: str) -> str:
    """Replace what has the form of an access token, an API key or a password in an address by `<redacted>`."""
    return _SECRET_VALUE.sub("<redacted>", text)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: no NaN, no object, and no entry whose name is that of a secret."""
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return redact_secrets(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items() if not _is_secret_name(str(name))}
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return redact_secrets(str(value))


def _write_atomically(path: str | os.PathLike, text: str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same directory: a rename cannot cross file systems
    try:
        # Models write half surrogate pairs now and then; one of them must not cost the file.
        with open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------------------
# Numbers as text
# --------------------------------------------------------------------------------------------------------------------


def metric_unit(name: str) -> str:
    """
    The unit of a metric, from its name: `"%"` for a fraction, `"nats"` for a log-probability, `""` for a plain number.

    Args:
        name (`str`):
            Name of the metric, such as `acc@t1` or `logps/response`.
    """
    name = name.removesuffix("/sampled")
    if name.startswith("logps/") or name in ("correction_amount", "entropy", "kl"):
        return "nats"
    if name.startswith(("acc@", "delta(", "corrections/", "responses/")):
        return "%"
    if name.endswith(("_ratio", "_rate", "_changed", "_accuracy")) or name == "accuracy":
        return "%"
    return ""


def _format_summary(name: str, summary: Summary | None, difference: bool = False, separator: str = " ") -> str:
    """
    `66.8% [64.7, 68.9]`, and for the difference of two fractions, in percentage points, `+7.7 pp [+6.2, +9.2]`. Nats
    are named once per metric, by [`_with_unit`], not at every number.
    """
    if summary is None or not _is_number(summary["mean"]):
        return "-"
    fraction = metric_unit(name) == "%"
    scale, digits = (100, 1) if fraction else (1, 2)

    def number(value: float) -> str:
        # "+ 0.0" turns a rounded -0.0 into 0.0
        return f"{round(scale * value, digits) + 0.0:{'+' if difference else ''}.{digits}f}"

    text = number(summary["mean"]) + (" pp" if difference else "%") * fraction
    if _is_number(summary["low"]) and _is_number(summary["high"]):
        text += f"{separator}[{number(summary['low'])}, {number(summary['high'])}]"
    return text


def _with_unit(name: str) -> str:
    return f"{name} (nats)" if metric_unit(name) == "nats" else name


def _format_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _format_counts(name: str, metrics: Mapping[str, Any]) -> str:
    before, after = metrics["before"][name]["n"], metrics["after"][name]["n"]
    return f"{before}" if before == after else f"{before}/{after}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def print_summary(metrics: Mapping[str, Any], console: Console | None = None, files: Sequence = ()) -> None:
    """
    Print what changed: one line per metric with 95 % intervals, the time it took, and where the files are.

    Args:
        metrics (`dict`):
            What [`write_metrics`] returned, or the loaded file.
        console (`rich.console.Console`, *optional*):
            Where to print. By default standard output; when that is a log file rather than a terminal, lines are as
            wide as the table needs.
        files (`Sequence` of `str` or `os.PathLike`, *optional*):
            What the run wrote, to be listed below the table.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=140)
    # Numbers are never broken in two: on a narrow screen each interval goes below its number instead.
    separator = " " if console.width >= 120 else "\n"

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", overflow="fold")
    for heading in ("before", "after", "difference", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in metrics["before"]:
        table.add_row(
            escape(_with_unit(name)),
            _format_summary(name, metrics["before"][name], separator=separator),
            _format_summary(name, metrics["after"][name], separator=separator),
            _format_summary(name, metrics["difference"].get(name), difference=True, separator=separator),
            _format_counts(name, metrics),
        )
    if metrics["before"]:
        console.print("Before and after training, with 95% intervals over n problems", highlight=False)
        console.print(table)
    if _is_number(metrics["seconds"]):
        console.print(f"Time: {_format_seconds(metrics['seconds'])}", highlight=False)
    for file in files:
        # Not wrapped and not marked up: a path must stay one word that can be copied.
        console.print(f"Wrote {os.fspath(file)}", highlight=False, markup=False, soft_wrap=True)


# --------------------------------------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------------------------------------


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
    with matplotlib.rc_context(_STYLE):
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
            _legend_above(axis, title)
        for axis in axes[len(shown) :]:
            axis.remove()
        if any(_window(len(curves[key][0])) > 1 for _, _, keys in shown for key in keys):
            figure.supxlabel("thin: every logged step; thick: running mean over 5% of them", fontsize=9)
        return _save(figure, path)


def _curve(log_history: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(entry["step"], entry[key]) for entry in log_history if "step" in entry and _is_number(entry.get(key))]
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


def _legend_above(axis, title: str) -> None:
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
        if _is_number(before[key]["mean"]) or _is_number(after[key]["mean"]):
            groups.setdefault(_axis_label(key), []).append(key)
    if not groups:
        logger.warning("No comparison was drawn: no metric has a value before or after training.")
        return None

    rows = [len(group) for group in groups.values()]
    with matplotlib.rc_context(_STYLE):
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
                means = [_format_summary(key, {**side[key], "low": None, "high": None}) for side in (before, after)]
                text = "  →  ".join(means)
                axis.annotate(text, (1.015, row), xycoords=("axes fraction", "data"), va="center", fontsize=9.5)
            axis.set_ylim(len(group) - 0.5, -0.5)
            axis.set_yticks(range(len(group)), [labels.get(key, key) for key in group])
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="y", visible=False)
            axis.set_xlabel(label)
            axis.margins(x=0.06)
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
        return _save(figure, path)


def _axis_label(key: str) -> str:
    if key.startswith("acc@") or key == "accuracy":
        return "problems answered right (%)"
    if key.startswith("delta("):
        return "change between the two answers (% of all problems)"
    return {"%": "share (%)", "nats": "nats", "": "value"}[metric_unit(key)]


def _draw_interval(axis, summary: Summary, row: float, scale: float, color: str, fill: str) -> None:
    if _is_number(summary["low"]) and _is_number(summary["high"]):
        ends = [scale * summary["low"], scale * summary["high"]]
        axis.plot(ends, [row, row], color=color, linewidth=2.2, solid_capstyle="butt", zorder=2)
    if _is_number(summary["mean"]):
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
    with matplotlib.rc_context(_STYLE):
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
        _legend_above(axis, "Edits needed per problem")
        return _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png", facecolor="white")
    return path


# --------------------------------------------------------------------------------------------------------------------
# Examples
# --------------------------------------------------------------------------------------------------------------------

# Chinese and Japanese write no spaces between words, so each of their characters counts as one.
_HAN_AND_KANA = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_PIECES = re.compile(rf"[{_HAN_AND_KANA}]|[^\W{_HAN_AND_KANA}]+|\s+|.", re.DOTALL)
# A character with the accents, variation selectors, skin tones and joined emoji that belong to it.
_CLUSTERS = re.compile(r".(?:[\u0300-\u036f\ufe00-\ufe0f\u20d0-\u20ff\U0001f3fb-\U0001f3ff]|\u200d.)*", re.DOTALL)

_Block = tuple[bool, str, str]  # (whether it was edited, its text in the response, its text in the correction)
_Run = tuple[str, bool]  # (text, whether it was edited)


def examples_markdown(examples: Sequence[Mapping[str, Any]], limit: int = 5) -> str:
    """
    Examples of corrections for a model card: what the correction removed is struck (and red), what it put in is
    underlined (and green). Long texts are cut around their edits.

    Args:
        examples (`list[dict]`):
            `{"prompt", "response", "correction"}`, plain text or conversational; a `correction` of `None` means that
            the teacher gave none.
        limit (`int`, *optional*, defaults to `5`):
            Number of examples to show.

    Returns:
        `str`: HTML that Markdown passes through as it is; the texts are escaped and cannot break the page.
    """
    deleted = f'<del style="color:{_DELETED};background:{_DELETED_FILL}">'
    inserted = f'<ins style="color:{_INSERTED};background:{_INSERTED_FILL}">'

    def marked(runs: Sequence[_Run], opening: str) -> str:
        closing = f"</{opening[1:4]}>"
        return "".join(opening + html.escape(text) + closing if edited else html.escape(text) for text, edited in runs)

    parts = []
    for prompt, response, correction in map(_example_runs, examples[:limit]):
        parts.append(
            '<pre style="white-space:pre-wrap">\n'
            f"<b>Prompt</b>      {marked(prompt, '')}\n"
            f"<b>Response</b>    {marked(response, deleted)}\n"
            f"<b>Correction</b>  {marked(correction, inserted)}\n"
            "</pre>"
        )
    return "\n\n".join(parts)


def plot_examples(examples: Sequence[Mapping[str, Any]], path: str | os.PathLike, limit: int = 5) -> Path | None:
    """
    Draw examples of corrections: what the correction removed is struck and red, what it put in is underlined and
    green. Long texts are wrapped, and cut around their edits.

    Args:
        examples (`list[dict]`):
            `{"prompt", "response", "correction"}`, plain text or conversational; a `correction` of `None` means that
            the teacher gave none.
        path (`str` or `os.PathLike`):
            PNG file to write; its directory is created.
        limit (`int`, *optional*, defaults to `5`):
            Number of examples to draw.

    Returns:
        `Path` of the picture, or `None` (with a warning) if there is no example. Characters that no installed font has
        are drawn as boxes.
    """
    if not examples:
        logger.warning("No examples were drawn: there are none.")
        return None
    columns, label_width = 96, 13
    none = ("#1f2326", None)
    lines = []  # (label, cells of the line, (text color, background) of edited cells)
    for number, runs in enumerate(map(_example_runs, examples[:limit]), start=1):
        lines.append((f"Example {number}", [], none))
        styles = (none, (_DELETED, _DELETED_FILL), (_INSERTED, _INSERTED_FILL))
        for name, part, style in zip(("Prompt", "Response", "Correction"), runs, styles, strict=True):
            for index, cells in enumerate(_wrap(part, columns)):
                lines.append((name if index == 0 else "", cells, style))
        lines.append(("", [], none))

    # Coordinates are character cells: a fixed-width font makes the place of every character known in advance.
    installed = set(font_manager.get_font_names())
    family = ["DejaVu Sans Mono", *(name for name in _FALLBACK_FONTS if name in installed)]
    font = font_manager.FontProperties(family=family, size=10)
    figure = Figure(dpi=100)
    probe = FigureCanvasAgg(figure).get_renderer().get_text_width_height_descent("0" * 100, font, ismath=False)
    cell, line_height, margin = probe[0] / 100, 19.0, 14.0
    width = 2 * margin + (label_width + columns) * cell
    height = 2 * margin + (len(lines) + 1) * line_height
    figure.set_size_inches(width / 100, height / 100)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)

    def write(x: float, y: float, text: str, **style) -> None:
        axis.text(x, y, text, fontproperties=font, va="baseline", parse_math=False, **style)

    title = "Corrections: what was removed is red and struck, what was put in is green and underlined"
    axis.text(margin, margin + 12, title, fontsize=11, fontweight="bold", family="DejaVu Sans", va="baseline")
    for row, (label, cells, (color, background)) in enumerate(lines, start=1):
        y = margin + row * line_height + 18
        if label.startswith("Example"):
            axis.plot([margin, width - margin], [y - 18, y - 18], color="#d5d8da", linewidth=0.8)
        write(margin, y, label, color="#6b7075")
        x = margin + label_width * cell
        for text, size, edited in _same_style(cells):
            if edited:
                axis.add_patch(Rectangle((x, y - 13), size * cell, 18, facecolor=background, edgecolor="none"))
                level = y - 4 if color == _DELETED else y + 4  # below an underscore
                axis.plot([x, x + size * cell], [level, level], color=color, linewidth=1.3, solid_capstyle="butt")
            write(x, y, text, color=color if edited else none[0])
            x += size * cell
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return _save(figure, path)


# Asked for only where they are installed; without them Chinese, Japanese and Korean are drawn as boxes.
_FALLBACK_FONTS = (
    "Noto Sans Mono CJK SC",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "MS Gothic",
    "Noto Sans Devanagari",
)


def _example_runs(example: Mapping[str, Any]) -> tuple[list[_Run], list[_Run], list[_Run]]:
    """Prompt, response and correction of an example as runs `(text, edited)`, ready to be shown."""
    prompt, response = _as_text(example["prompt"]), _as_text(example["response"])
    prompt = [(_cut(prompt, 250, 150), False)]
    if example["correction"] is None:
        return prompt, [(_cut(response, 350, 0), False)], [("(none)", False)]
    correction = _as_text(example["correction"])
    if correction == response:
        return prompt, [(_cut(response, 350, 0), False)], [("(the same: nothing to correct)", False)]
    blocks = _around_edits(_edit_blocks(response, correction))
    return (
        prompt,
        [(_visible(old, edited), edited) for edited, old, _ in blocks if old],
        [(_visible(new, edited), edited) for edited, _, new in blocks if new],
    )


def _visible(text: str, edited: bool) -> str:
    """Show line breaks that were removed or put in, which would be invisible, and shorten long runs of empty lines."""
    text = re.sub(r"\n{4,}", "\n…\n", text)
    return text.replace("\n", "↵\n") if edited else text


def _as_text(value: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a plain or conversational prompt, response or correction, with what cannot be shown replaced."""
    if not isinstance(value, str):
        texts = []
        for message in value:
            content = message["content"]
            if not isinstance(content, str):  # a list of text and image parts
                content = " ".join(part.get("text", f"({part['type']})") for part in content)
            texts.append(content if len(value) == 1 else f"{message['role']}: {content}")
        value = "\n".join(texts)
    # Redacted before the edits are marked: the marks would cut a secret in parts that no pattern recognises.
    value = redact_secrets(value).replace("\r\n", "\n").replace("\t", "    ")
    # Control characters and halves of surrogate pairs
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in value)


def _edit_blocks(response: str, correction: str) -> list[_Block]:
    """
    Align two texts, as blocks of equal and of edited text. By word, since letters that two words happen to share
    explain nothing; but where a word was changed only slightly (a digit of a number, a typo), by character.
    """
    words = _align(_PIECES.findall(response), _PIECES.findall(correction))
    # Blocks alternate, so a space that is neither first nor last stands between two edits, and belongs to them.
    last = len(words) - 1
    words = [(edited or (old.isspace() and 0 < i < last), old, new) for i, (edited, old, new) in enumerate(words)]

    blocks = []
    for edited, old, new in _join_neighbours(words):
        numbers = old.isdigit() and new.isdigit()
        if edited and (numbers or Levenshtein.normalized_similarity(old, new) >= 0.6):
            blocks.extend(_align(_CLUSTERS.findall(old), _CLUSTERS.findall(new)))
        else:
            blocks.append((edited, old, new))
    return blocks


def _align(a: Sequence[str], b: Sequence[str]) -> list[_Block]:
    """Align two sequences of pieces with the fewest edits; the blocks alternate between equal and edited."""
    # Of equally short alignments, the one without shifts: in 0999 -> 1000 all four digits are wrong, none was put in.
    if len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == Levenshtein.distance(a, b):
        steps = [(x != y, x, y) for x, y in zip(a, b, strict=True)]
    else:
        steps = []
        for edit in Levenshtein.opcodes(a, b):
            old, new = "".join(a[edit.src_start : edit.src_end]), "".join(b[edit.dest_start : edit.dest_end])
            steps.append((edit.tag != "equal", old, new))
    return _join_neighbours(steps)


def _join_neighbours(blocks: Sequence[_Block]) -> list[_Block]:
    return [
        (edited, "".join(old for _, old, _ in group), "".join(new for _, _, new in group))
        for edited, group in ((edited, list(group)) for edited, group in groupby(blocks, key=itemgetter(0)))
    ]


def _around_edits(blocks: Sequence[_Block], limit: int = 500, context: int = 60) -> list[_Block]:
    """Cut texts of more than `limit` characters to `context` characters around each edit, and to `limit` in all."""
    if sum(max(len(old), len(new)) for _, old, new in blocks) <= limit:
        return list(blocks)
    shown, used = [], 0
    for index, (edited, old, new) in enumerate(blocks):
        if used >= limit:
            left = sum(edited for edited, _, _ in blocks[index:])
            note = f" … ({left} more edit{'s' if left > 1 else ''})" if left else " …"
            shown.append((False, note, note))
            break
        if edited:
            old, new = _cut(old, limit // 3, limit // 6), _cut(new, limit // 3, limit // 6)
        else:
            old = new = _cut(old, context if index > 0 else 0, context if index < len(blocks) - 1 else 0)
        used += max(len(old), len(new))
        shown.append((edited, old, new))
    return shown


def _cut(text: str, head: int, tail: int) -> str:
    """The first `head` and the last `tail` characters, with an ellipsis for what is between them."""
    if len(text) <= head + tail + 3:
        return text
    return text[:head] + " … " + text[len(text) - tail :]


_Cell = tuple[str, int, bool]  # (a character with its accents, its width in columns, whether it was edited)


def _wrap(runs: Sequence[_Run], columns: int, max_lines: int = 12) -> list[list[_Cell]]:
    """Break runs into lines of at most `columns` columns, at a space where there is one in the second half."""
    lines = [[]]
    for text, edited in runs:
        for cluster in _CLUSTERS.findall(text):
            if cluster == "\n":
                lines.append([])
                continue
            # East Asian characters and emoji are as wide as two letters
            size = 2 if unicodedata.east_asian_width(cluster[0]) in "WF" else 1
            if sum(width for _, width, _ in lines[-1]) + size > columns:
                spaces = [index for index, cell in enumerate(lines[-1]) if cell[0] == " "]
                end = spaces[-1] + 1 if spaces and spaces[-1] > columns // 2 else len(lines[-1])
                lines[-1:] = [lines[-1][:end], lines[-1][end:]]
            lines[-1].append((cluster, size, edited))
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], [("…", 1, False)]]
    return lines


def _same_style(cells: Sequence[_Cell]) -> list[_Cell]:
    """Join neighbours that can be drawn as one text: of the same style, and of letters that are one column wide."""
    joined = []
    for text, size, edited in cells:
        if joined and joined[-1][2] == edited and text.isascii() and joined[-1][0].isascii():
            text, size = joined[-1][0] + text, joined[-1][1] + size
            joined.pop()
        joined.append((text, size, edited))
    return joined


# --------------------------------------------------------------------------------------------------------------------
# Model card
# --------------------------------------------------------------------------------------------------------------------

_METHOD_KEYS = {"name", "tag", "paper_title", "paper_id", "url", "citation", "description", "departures"}


def write_model_card(
    output_dir: str | os.PathLike,
    *,
    model_name: str,
    base_model: str | None,
    dataset_name: str | None,
    method: Mapping[str, Any],
    metrics: Mapping[str, Any],
    pictures: Mapping[str, str | os.PathLike | None] | None = None,
    examples: Sequence[Mapping[str, Any]] = (),
    tags: Sequence[str] = (),
    license: str | None = None,
    hub_model_id: str | None = None,
    peft: bool = False,
    command: str | None = None,
    usage: str | None = None,
    pipeline_tag: str = "text-generation",
) -> Path:
    """
    Write the model card, `README.md`, of a trained model or adapter. Its metadata hold the results after training as a
    `model-index`; its text says what was trained on what, what changed, with which command and versions, and where the
    method departs from its paper.

    The card is made to be published: a local base model or dataset is named without its path and kept out of the
    metadata (the Hub rejects a card whose `base_model` is a path), and whatever has the form of a secret is redacted.

    Args:
        output_dir (`str` or `os.PathLike`):
            Directory of the model; gets the `README.md`. Saving a PEFT adapter and `Trainer.push_to_hub` write a
            `README.md` of their own, so call this after the one and upload without the other.
        model_name (`str`):
            Name of the trained model.
        base_model (`str` or `None`):
            Hub id or local path of the model that was trained.
        dataset_name (`str` or `None`):
            Hub id or local path of the training data.
        method (`dict`):
            `name`, and optionally `tag` (defaults to the name in lower case with dashes), `paper_title` and `paper_id`
            (arXiv number), `url` (where the method is described, if not in a paper), `citation` (BibTeX),
            `description` (`str`) and `departures` (`list[str]`, how this differs from the paper).
        metrics (`dict`):
            What [`write_metrics`] returned, or the loaded file.
        pictures (`dict[str, str or os.PathLike or None]`, *optional*):
            Caption to PNG file inside `output_dir`; `None`, as the plot functions return it, is skipped.
        examples (`list[dict]`, *optional*):
            See [`examples_markdown`].
        tags (`Sequence[str]`, *optional*):
            Tags besides `trl`, `correction_trl` and the tag of the method.
        license (`str`, *optional*):
            License identifier of the Hub, such as `apache-2.0`.
        hub_model_id (`str`, *optional*):
            Where the model is pushed to, for the code that loads it.
        peft (`bool`, *optional*, defaults to `False`):
            Whether this is an adapter rather than a whole model.
        command (`str`, *optional*):
            Training command. Defaults to `metrics["command"]`.
        usage (`str`, *optional*):
            Python code that uses the model. Defaults to a text-generation pipeline.
        pipeline_tag (`str`, *optional*, defaults to `"text-generation"`):
            Task of the model, as the Hub names it.

    Returns:
        `Path` of the card.

    Raises:
        `ValueError`: if `method` has no `name` or an unknown key, or a picture does not exist or lies outside
        `output_dir`.
    """
    output_dir = Path(output_dir)
    if "name" not in method or (unknown := sorted(method.keys() - _METHOD_KEYS)):
        problem = f"has the unknown keys {unknown}" if "name" in method else "lacks `name`"
        raise ValueError(f"`method` {problem}; it takes {sorted(_METHOD_KEYS)}.")
    method_tag = method.get("tag") or re.sub(r"[^a-z0-9]+", "-", method["name"].lower()).strip("-")
    dataset_id = dataset_name if _is_hub_id(dataset_name) else None

    card_data = ModelCardData(
        base_model=base_model if _is_hub_id(base_model) else None,
        datasets=dataset_id,
        library_name="peft" if peft else "transformers",
        license=license,
        model_name=model_name,
        pipeline_tag=pipeline_tag,
        tags=["trl", "correction_trl", method_tag, *tags],
        eval_results=[
            EvalResult(
                task_type=pipeline_tag,
                dataset_type=dataset_id or "custom",
                dataset_name=_public_name(dataset_name) or "evaluation problems",
                metric_type=name,
                metric_name=f"{name}: {METRIC_DESCRIPTIONS[name]}" if name in METRIC_DESCRIPTIONS else name,
                metric_value=round(summary["mean"], 6),
                metric_args={key: round(summary[key], 6) for key in ("low", "high", "n") if _is_number(summary[key])},
            )
            for name, summary in metrics["after"].items()
            if _is_number(summary["mean"])
        ]
        or None,
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(Path(__file__).parents[1] / "templates" / "model_card.md"),
        model_name=model_name,
        base_model=_link(base_model, "https://huggingface.co/"),
        dataset=_link(dataset_name, "https://huggingface.co/datasets/"),
        method=method,
        peft=peft,
        results=[
            {
                "name": name,
                "label": f"`{name}`".replace("|", "\\|") + _with_unit(name).removeprefix(name),
                "description": METRIC_DESCRIPTIONS.get(name),
                "before": _format_summary(name, metrics["before"][name]),
                "after": _format_summary(name, metrics["after"][name]),
                "difference": _format_summary(name, metrics["difference"].get(name), difference=True),
                "problems": _format_counts(name, metrics),
            }
            for name in metrics["after"]
        ],
        pictures=[
            (caption, _picture_link(picture, output_dir))
            for caption, picture in (pictures or {}).items()
            if picture is not None
        ],
        examples=examples_markdown(examples),
        hub_model_id=hub_model_id,
        usage=usage,
        pipeline_tag=pipeline_tag,
        time=_format_seconds(metrics["seconds"]) if _is_number(metrics["seconds"]) else None,
        command=publishable(metrics["command"] if command is None else command),
        versions=metrics["versions"],
    )
    path = output_dir / "README.md"
    _write_atomically(path, redact_secrets(_without_run_directories(str(card), output_dir)))
    return path


def _is_hub_id(name: str | None) -> bool:
    """Whether a model or dataset name refers to the Hub. A directory of that name wins, as it does when loading."""
    if name is None or Path(name).expanduser().exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _public_name(name: str | None) -> str | None:
    """A Hub id as it is; of a path, the last part only."""
    return name if name is None or _is_hub_id(name) else re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def _link(name: str | None, prefix: str) -> str | None:
    if name is None:
        return None
    return f"[{name}]({prefix}{name})" if _is_hub_id(name) else f"`{_public_name(name)}` (local)"


def _picture_link(picture: str | os.PathLike, output_dir: Path) -> str:
    picture = Path(picture)
    if not picture.is_file():
        raise ValueError(f"The picture {picture} does not exist; draw it before writing the card.")
    if not picture.resolve().is_relative_to(output_dir.resolve()):
        raise ValueError(f"The picture {picture} is outside {output_dir} and would not be pushed; draw it inside.")
    return quote(picture.resolve().relative_to(output_dir.resolve()).as_posix())


# A path that starts a word of a command line, or the value after its `=`: /a/b, ~/a/b or C:\a\b
_ABSOLUTE_PATH = re.compile(r"""(?<![^\s"'=,:])(?:~|[A-Za-z]:(?=[\\/]))?[\\/][^\s"'=,:]+""")


# `--name value`, `--name=value` or `NAME=value`
_ARGUMENT = re.compile(r"(?<!\S)(-{0,2}[\w.-]+)(=|\s+)(?!-)(\S+)")


def publishable(command: str) -> str:
    """
    A command line without the values of secret arguments and without absolute paths: those below the working directory
    become relative to it, of the others the last part remains.
    """

    def redact(match: re.Match) -> str:
        names_a_secret = _is_secret_name(match[1]) and (match[1].startswith("-") or match[2] == "=")
        return f"{match[1]}{match[2]}<redacted>" if names_a_secret else match[0]

    def shorten(match: re.Match) -> str:
        path = Path(match[0])
        if path.is_relative_to(Path.cwd()) and path != Path.cwd():
            return path.relative_to(Path.cwd()).as_posix()
        return _public_name(match[0])

    return _ABSOLUTE_PATH.sub(shorten, _ARGUMENT.sub(redact, command))


def _without_run_directories(text: str, output_dir: Path) -> str:
    """
    Remove the directories of this run wherever else they turn up, in an example or in a text from the recipe. Other
    paths are left alone: `/usr/bin/env` may well be part of a model's answer.
    """
    directories = {output_dir.resolve(), Path.cwd(), Path.home()}
    for directory in sorted(map(str, directories), key=len, reverse=True):
        if directory != os.sep:
            text = re.sub(rf"(?<![\w.:/]){re.escape(directory)}(?![\w-])/?", "", text)
    return text


# --------------------------------------------------------------------------------------------------------------------
# All of it, at the end of a recipe
# --------------------------------------------------------------------------------------------------------------------


def write_report(
    output_dir: str | os.PathLike,
    *,
    log_history: Sequence[Mapping[str, float]],
    before: Evaluation | None,
    after: Evaluation | None,
    seconds: float,
    config: Any,
    panels: Sequence[tuple[str, str, Mapping[str, str]]] | None = None,
    more: Mapping[str, Any] | None = None,
    **card: Any,
) -> dict[str, Any]:
    """
    Leave what a recipe leaves beside its model: pictures, `metrics.json` and the model card; and print the summary.
    Call it on the main process only.

    Args:
        output_dir (`str` or `os.PathLike`):
            Directory of the model.
        log_history (`list[dict]`):
            `trainer.state.log_history`.
        before ([`~evaluation.Evaluation`], *optional*):
            The policy before training, if it was evaluated.
        after ([`~evaluation.Evaluation`], *optional*):
            The policy after training, on the same problems.
        seconds (`float`):
            Wall-clock time of the run.
        config (`dict`):
            What the run was configured with.
        panels (`list[tuple]`, *optional*):
            Panels of the learning curves; see [`plot_learning_curves`].
        more (`dict`, *optional*):
            Further entries of `metrics.json`.
        **card:
            Further arguments of [`write_model_card`]: `base_model`, `dataset_name`, `method`, ...

    Returns:
        `dict`: what `metrics.json` holds.
    """
    output_dir = Path(output_dir)
    pictures = {"Learning curves": plot_learning_curves(log_history, output_dir / "learning_curves.png", panels)}
    difference, examples = {}, []
    if before is not None:
        difference = {key: paired_difference(before.per_problem[key], after.per_problem[key]) for key in after.metrics}
        pictures["Before and after training"] = plot_before_after(
            before.metrics, after.metrics, output_dir / "before_after.png"
        )
        if "correction_edit_ratio" in after.metrics:  # a teacher corrected the responses
            examples = after.examples
            pictures["Edits that the responses need"] = plot_edit_distribution(
                before.per_problem["correction_edit_ratio"],
                after.per_problem["correction_edit_ratio"],
                output_dir / "edits.png",
            )
            pictures["Corrections of responses after training"] = plot_examples(examples, output_dir / "examples.png")
    metrics = write_metrics(
        output_dir / "metrics.json",
        before=before.metrics if before is not None else {},
        after=after.metrics if after is not None else {},
        difference=difference,
        seconds=seconds,
        config=config,
        peak_memory_gib=_peak_memory_gib(),
        **(more or {}),
    )
    write_model_card(
        output_dir,
        model_name=output_dir.resolve().name,
        metrics=metrics,
        pictures=pictures,
        examples=examples,
        **card,
    )
    print_summary(metrics, files=sorted(path for path in output_dir.iterdir() if path.is_file()))
    return metrics


def _peak_memory_gib() -> float:
    """Most memory that the tensors on the GPU, or without one the whole process, took so far, in GiB."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    import resource  # not there on Windows

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)  # Linux counts in KiB
