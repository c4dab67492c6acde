"""
What the studies of this folder share: runs of the embedded task over cells and seeds, whose results are kept one line
each and never computed twice, and the numbers, tables and pictures that are made of them.

A results file is JSON lines: first what holds for the whole study (settings, versions, the base model), then one line
for each run. Processes side by side (`--part 0/2`, `--part 1/2`) append to the same file.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from correction_trl.reporting import installed_versions


ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
# Training arguments of every run: nothing but the model, on one core
ON_CPU = {
    "logging_steps": 10,
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "use_cpu": True,
}
GREY, BLUE, ORANGE, GREEN, PURPLE = "#8a8f98", "#2b6a99", "#c9742b", "#4d8a57", "#7d5fa3"


class Study:
    """
    The results of a study.

    Args:
        path (`Path`):
            File of JSON lines.
        identity (`Sequence[str]`):
            Keys of a run that no other run shares, such as arm and seed.

    Attributes:
        settings (`dict`):
            What holds for all runs.
        runs (`list[dict]`):
            Identity and results of each run.
    """

    def __init__(self, path: Path, identity: Sequence[str]):
        self.path, self.identity = path, tuple(identity)
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [{}]
        self.settings = lines[0]
        self.runs = list({self._key(run): run for run in lines[1:]}.values())

    def _key(self, run: dict[str, Any]) -> tuple:
        return tuple(run[name] for name in self.identity)

    @property
    def is_committed(self) -> bool:
        """Whether the docs show these results, and not those of a trial elsewhere."""
        return self.path.resolve().parent == ROOT / "results"

    @property
    def seeds(self) -> list[int]:
        return sorted({run["seed"] for run in self.runs})

    def begin(self, command: str, base: Callable[[], Any] | None = None, **settings: Any) -> None:
        """
        Write the first line, or see that it says the same: runs of different settings do not belong in one table.

        Args:
            command (`str`):
                What makes the study again.
            base (`Callable`, *optional*):
                Measures the model before training, once.
            **settings:
                Of the study.
        """
        if self.settings:
            changed = [name for name in settings if settings[name] != self.settings[name]]
            if changed:
                raise SystemExit(f"{self.path} holds runs with another {', '.join(changed)}; name other --results.")
            return
        self.settings = {**settings, "command": command, "versions": installed_versions()}
        if base is not None:
            self.settings["base"] = base()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.settings) + "\n")

    def run(
        self, cells: Iterable[dict[str, Any]], measure: Callable[[dict[str, Any]], dict], part: str = "0/1"
    ) -> None:
        """
        Run what is missing.

        Args:
            cells (`Iterable[dict]`):
                Identities of the runs.
            measure (`Callable`):
                From an identity to its results; `summary` among them is printed and not kept.
            part (`str`, *optional*, defaults to `"0/1"`):
                `i/n`: every n-th cell, from the i-th on.
        """
        index, n_parts = map(int, part.split("/"))
        done = {self._key(run) for run in self.runs}
        for i, cell in enumerate(cells):
            if i % n_parts != index or self._key(cell) in done:
                continue
            start = time.time()
            found = measure(cell)
            print(*self._key(cell), found.pop("summary", ""), f"{time.time() - start:.0f} s", flush=True)
            run = {**cell, **found}
            run.setdefault("seconds", round(time.time() - start, 1))
            self.runs.append(run)
            with open(self.path, "a") as file:
                file.write(json.dumps(run) + "\n")

    def where(self, **values: Any) -> list[dict[str, Any]]:
        """The runs that have these values."""
        return [run for run in self.runs if all(run[name] == value for name, value in values.items())]


def parser(doc: str, results: str, seeds: Sequence[int] = (0, 1, 2)) -> argparse.ArgumentParser:
    """The arguments that every study has; `results` is the file's name in results/."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--results", type=Path, default=ROOT / "results" / results)
    parser.add_argument("--part", default="0/1", help="i/n: every n-th run, for several processes side by side")
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables and pictures")
    return parser


def at(run: dict[str, Any], *keys: str) -> float:
    """The mean of a metric of a run."""
    for key in keys:
        run = run[key]
    return run["mean"]


def mean_std(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; that of one is 0."""
    values = list(values)
    mean = sum(values) / len(values)
    return mean, (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)) ** 0.5


def plus_minus(values: Iterable[float]) -> str:
    """Fractions as percent: `66.8 ± 1.2`."""
    mean, std = mean_std(values)
    return f"{100 * mean:.1f} ± {100 * std:.1f}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"

    return [line(headings), "|" + "---|" * len(headings), *map(line, rows)]


def tidy(axis: Any, grid: str = "y", title: str | None = None) -> None:
    """The look of the pictures."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#e6e8ea")
    if title is not None:
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold")


def save(figure: Any, name: str, dpi: int = 130) -> None:
    """Write a picture for the docs."""
    figure.tight_layout()
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / name, dpi=dpi)
