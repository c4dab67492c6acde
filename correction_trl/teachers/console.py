"""What a collection shows while it runs and when it is done."""

import time
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..data_utils import message_text
from .collection import Progress
from .store import CORRECTED, FAILED, SKIPPED, UNCHANGED, UNPARSABLE


class ProgressLine:
    """
    One line with how far a collection is: rewritten on a terminal, printed now and then into a log file. As a context
    manager.

    Args:
        console (`rich.console.Console`, *optional*):
            Where to. By default standard output.
        seconds (`float`, *optional*):
            Least time between two lines: by default 0.2 on a terminal, 30 elsewhere.
    """

    def __init__(self, console: Console | None = None, seconds: float | None = None):
        self.console = console or Console()
        self.seconds = seconds if seconds is not None else 0.2 if self.console.is_terminal else 30.0
        self._shown_at, self._last = time.monotonic(), None

    def show(self, progress: Progress) -> None:
        """Show a state of affairs, unless one was shown just now."""
        self._last = progress
        if time.monotonic() - self._shown_at >= self.seconds:
            self._print(progress)

    def _print(self, progress: Progress):
        self._shown_at = time.monotonic()
        self.console.print(progress_text(progress), end="\r" if self.console.is_terminal else "\n", highlight=False)

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_) -> None:
        if self._last is not None:
            self._print(self._last)
            if self.console.is_terminal:
                self.console.print()


def progress_text(progress: Progress) -> str:
    """
    How far a collection is, in one line.

    Args:
        progress ([`Progress`]):
            From [`collect`].
    """
    done = progress.found + progress.asked
    counts = progress.statuses
    parts = [f"{done}/{progress.total} done" if progress.total is not None else f"{done} done"]
    if progress.found:
        parts.append(f"{progress.found} of them from the store")
    parts += [f"{counts[CORRECTED]} corrected", f"{counts[UNCHANGED]} unchanged"]
    parts += [f"{counts[name]} {name}" for name in (UNPARSABLE, SKIPPED, FAILED) if counts[name]]
    if progress.tokens_in:
        parts.append(f"{progress.tokens_in:,} + {progress.tokens_out:,} tokens")
    if progress.cost:
        parts.append(f"cost {progress.cost:.4f}" if progress.cost < 1 else f"cost {progress.cost:.2f}")
    if progress.seconds_left:
        parts.append(f"{progress.seconds_left:.0f} s left")
    return ", ".join(parts)


def print_collection(
    result: dict[str, Any], progress: Progress | None, folder: Path, console: Console | None = None
) -> None:
    """
    What was collected: examples, how much was edited, and what failed for which reasons.

    Args:
        result (`dict`):
            From [`write_dataset`].
        progress ([`Progress`], *optional*):
            From [`collect`].
        folder (`Path`):
            Where the dataset lies.
        console (`rich.console.Console`, *optional*):
            Where to print. By default standard output.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)
    table = Table("prompt", "response", "correction", box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for example in result["examples"][:5]:
        texts = (message_text(example["prompt"]), example["response"], example["correction"])
        table.add_row(*(escape(text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}") for text in texts))
    if table.row_count:
        console.print(table)
    counts, edits = result["counts"], result["correction_edit_ratio"]
    console.print(
        f"{counts['corrected']} responses were corrected, {counts['unchanged']} were right as they are; on average "
        f"{edits['mean']:.1%} of the text was edited.",
        highlight=False,
    )
    for name, what in (
        ("not_better", "are not rated higher than the response and are left out"),
        ("unparsable", "replies could not be read; they are kept, and asked for again only with --retry_unparsable"),
        ("missing", "have no answer; they are asked again when the run is started again"),
    ):
        if counts[name]:
            console.print(f"{counts[name]} {what}.", highlight=False)
    if progress is not None:
        reasons = sorted(progress.failures.items(), key=lambda pair: -pair[1])
        for reason, count in reasons[:20]:
            console.print(f"  {count} x {escape(reason)}", highlight=False)
        if len(reasons) > 20:
            console.print(f"  and {len(reasons) - 20} other reasons; the store has them all", highlight=False)
    console.print(f"The dataset, its card and pictures are in {folder}", highlight=False)
