"""`metrics.json`: what was measured, and what it takes to measure it again; and the same numbers as text."""

import dataclasses
import enum
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import __version__
from ..evaluation.metrics import is_rate
from .privacy import command_line, is_secret_name, publishable_setting


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
    "fluency": "log-probability per token of the response under the model before training",
    "distinct_2": "different pairs of neighbouring tokens / all",
    "length": "tokens of the response",
}


# A fall of the responses' log-probability per token under the model before training that is worth a warning. From one
# trial on a real model (house style, not among `results/`): fine-tuning and the default loss ended 0.2 above the base,
# text that the linear loss had ruined 0.8 below it.
FLUENCY_LIMIT = 0.5


_FRACTIONS_OF_LM_EVAL = ("acc", "exact_match", "em", "f1", "inst_level", "mc1", "mc2", "pass@", "prompt_level")


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
    infinity become `null`), and without secrets and paths of the machine, so that it can be published.

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
    metrics = plain(metrics | more)
    write_atomically(path, json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    return metrics


def write_per_problem(
    path: str | os.PathLike, problems: Sequence[int | str], values: Mapping[str, Mapping[str, Any]]
) -> Path:
    """
    Write what was measured for each problem, one line of JSON each: `{"problem": 3, "after": {"acc@t1": 1.0, ...}}`.

    Args:
        path (`str` or `os.PathLike`):
            File to write; its directory is created.
        problems (`Sequence[int | str]`):
            What the problems are called.
        values (`dict[str, dict]`):
            Per name, such as `"before"` and `"after"`, [`~evaluation.Evaluation.per_problem`], or such dicts by a
            further name.
    """

    def of(row: int, found: Mapping[str, Any]) -> dict[str, Any]:
        return {key: of(row, item) if isinstance(item, Mapping) else item[row] for key, item in found.items()}

    lines = [{"problem": problem} | plain(of(row, values)) for row, problem in enumerate(problems)]
    write_atomically(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    return Path(path)


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the packages a result depends on; packages that are not installed are left out."""
    versions = {"python": platform.python_version(), "correction_trl": __version__}
    for package in ("torch", "trl", "transformers", "peft", "datasets", "accelerate", "bitsandbytes"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def plain(value: Any) -> Any:
    """`value` as JSON can hold it and all may read it: no NaN, no object, no secret and no path of the machine."""
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return publishable_setting(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {
            publishable_setting(str(name)): plain(item)
            for name, item in value.items()
            if not is_secret_name(str(name))
        }
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return publishable_setting(str(value))


def write_atomically(path: str | os.PathLike, text: str) -> None:
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
    The unit of a metric, from its name: `"%"` for a fraction, `"nats"` for a log-probability, `"nats/token"`,
    `"tokens"`, or `""` for a plain number.

    Args:
        name (`str`):
            Name of the metric, such as `acc@t1` or `logps/response`.
    """
    name = name.removesuffix("/sampled")
    if name.startswith("logps/") or name in ("correction_amount", "entropy", "kl"):
        return "nats"
    if name.startswith("regression/"):
        return "%" if name.rpartition("/")[2].startswith(_FRACTIONS_OF_LM_EVAL) else ""
    if is_rate(name) or name.startswith(("f1@", "bias_")):
        return "%"
    if name.endswith(("_ratio", "_rate", "_changed", "_accuracy")) or name == "accuracy":
        return "%"
    return {"fluency": "nats/token", "distinct_2": "%", "length": "tokens"}.get(name, "")


def format_summary(name: str, summary: Summary | None, difference: bool = False, separator: str = " ") -> str:
    """
    `66.8% [64.7, 68.9]`, and for the difference of two fractions, in percentage points, `+7.7 pp [+6.2, +9.2]`. Nats
    are named once per metric, by [`with_unit`], not at every number.
    """
    if summary is None or not is_number(summary["mean"]):
        return "-"
    fraction = metric_unit(name) == "%"
    scale, digits = (100, 1) if fraction else (1, 2)

    def number(value: float) -> str:
        # "+ 0.0" turns a rounded -0.0 into 0.0
        return f"{round(scale * value, digits) + 0.0:{'+' if difference else ''}.{digits}f}"

    text = number(summary["mean"]) + (" pp" if difference else "%") * fraction
    if is_number(summary["low"]) and is_number(summary["high"]):
        text += f"{separator}[{number(summary['low'])}, {number(summary['high'])}]"
    return text


def with_unit(name: str) -> str:
    unit = metric_unit(name)
    return name if unit in ("%", "") else f"{name} ({unit})"


def format_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_counts(name: str, metrics: Mapping[str, Any]) -> str:
    before, after = metrics["before"][name]["n"], metrics["after"][name]["n"]
    return f"{before}" if before == after else f"{before}/{after}"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def drift_warning(before: Mapping[str, Summary], after: Mapping[str, Summary]) -> str | None:
    """
    A sentence where the texts have left what the model before training would write: where its log-probability per
    token of them (`fluency`) has fallen by more than `FLUENCY_LIMIT` nats, beyond the noise. Every other metric can
    rise meanwhile.

    Args:
        before (`dict[str, dict]`):
            Summary of each metric before training.
        after (`dict[str, dict]`):
            Summary of each metric after training.
    """
    summaries = [side.get("fluency") for side in (before, after)]
    if None in summaries or not all(is_number(summary["mean"]) for summary in summaries):
        return None
    fall = summaries[0]["mean"] - summaries[1]["mean"]
    if fall <= FLUENCY_LIMIT or summaries[1]["high"] >= summaries[0]["low"]:
        return None
    return (
        f"The responses have become {fall:.2f} nats per token less likely under the model before training "
        f"({summaries[0]['mean']:.2f} before, {summaries[1]['mean']:.2f} after): a fall of more than {FLUENCY_LIMIT} "
        "often means ruined text, whatever the other numbers say. Read some of it; a higher `nll_weight`, a bounded "
        "loss, a lower learning rate or fewer updates hold the policy nearer."
    )


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
            escape(with_unit(name)),
            format_summary(name, metrics["before"][name], separator=separator),
            format_summary(name, metrics["after"][name], separator=separator),
            format_summary(name, metrics["difference"].get(name), difference=True, separator=separator),
            format_counts(name, metrics),
        )
    if metrics["before"]:
        console.print("Before and after training, with 95% intervals over n problems", highlight=False)
        console.print(table)
    for warning in metrics.get("warnings", ()):
        console.print(f"[bold]Warning:[/bold] {escape(warning)}", highlight=False)
    if is_number(metrics["seconds"]):
        console.print(f"Time: {format_seconds(metrics['seconds'])}", highlight=False)
    for file in files:
        # Not wrapped and not marked up: a path must stay one word that can be copied.
        console.print(f"Wrote {os.fspath(file)}", highlight=False, markup=False, soft_wrap=True)
