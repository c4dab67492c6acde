"""What a run leaves behind for its reader: `metrics.json`, pictures, a table on the console and a model card.

Plain functions, called by the recipes on the main process once the numbers are there. They compute nothing: the
numbers come from `evaluation/`, as *summaries* `{"mean", "low", "high", "n"}`. They are written for people who were
not there: every number comes with its unit, its interval and the number of problems, and no secret and no path of the
machine gets into what is published.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluation.evaluate import Evaluation, compare
from .edits import plot_examples
from .model_card import write_model_card
from .plots import plot_before_after, plot_edit_distribution, plot_learning_curves
from .run_metrics import drift_warning, print_summary, write_metrics, write_per_problem


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
    regression: tuple[Evaluation, Evaluation] | None = None,
    **card: Any,
) -> dict[str, Any]:
    """
    Leave what a recipe leaves beside its model: pictures, `metrics.json`, `per_problem.jsonl` and the model card; and
    print the summary.
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
        regression (`tuple[Evaluation, Evaluation]`, *optional*):
            Before and after training, from [`~evaluation.evaluate_regression`]; joins the metrics.
        **card:
            Further arguments of [`write_model_card`]: `base_model`, `dataset_name`, `method`, ...

    Returns:
        `dict`: what `metrics.json` holds.
    """
    output_dir = Path(output_dir)
    pictures = {"Learning curves": plot_learning_curves(log_history, output_dir / "learning_curves.png", panels)}
    difference, examples = {}, []
    if before is not None:
        difference = compare(before, after)
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
    sides = {side: found for side, found in (("before", before), ("after", after)) if found is not None}
    if sides:
        any_side = next(iter(sides.values()))
        n_problems = len(next(iter(any_side.per_problem.values())))
        write_per_problem(
            output_dir / "per_problem.jsonl",
            any_side.problems or range(n_problems),
            {side: found.per_problem for side, found in sides.items()},
        )
    warning = drift_warning(before.metrics, after.metrics) if before is not None and after is not None else None
    kept = regression or (Evaluation({}, {}, []), Evaluation({}, {}, []))  # what the policy could do before
    metrics = write_metrics(
        output_dir / "metrics.json",
        before=(before.metrics if before is not None else {}) | kept[0].metrics,
        after=(after.metrics if after is not None else {}) | kept[1].metrics,
        difference=difference | compare(*kept, keys=kept[1].per_problem),
        seconds=seconds,
        config=config,
        peak_memory_gib=_peak_memory_gib(),
        **({} if warning is None else {"warnings": [warning]}),
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
    files = (path for path in output_dir.iterdir() if path.is_file() and not path.name.startswith("."))
    print_summary(metrics, files=sorted(files))
    return metrics


def _peak_memory_gib() -> float:
    """Most memory that the tensors on the GPU, or without one the whole process, took so far, in GiB."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    import resource  # not there on Windows

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)  # Linux counts in KiB
