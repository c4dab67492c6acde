"""Collected corrections as a dataset that others can use: parquet files, pictures, numbers and a card."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import DatasetCard, DatasetCardData
from jinja2 import Environment

from ..data_utils import to_preference_columns
from ..errors import BadInput
from ..evaluation.metrics import edit_ratio, summarize
from ..teachers.prompting import TEMPLATES, TeacherPrompt
from ..teachers.store import CORRECTED, FAILED, SKIPPED, UNCHANGED, UNPARSABLE, Correction, to_dataset
from .edits import examples_markdown, plot_examples
from .plots import plot_edit_distribution
from .privacy import command_line, launched
from .run_metrics import installed_versions


def write_dataset(
    records: Sequence[Correction],
    folder: Path,
    teacher: str,
    responses_by: str = "a language model",
    prompt: TeacherPrompt | None = None,
    kept: Sequence[bool] | None = None,
    hub_dataset_id: str | None = None,
    n_items: int | None = None,
) -> dict[str, Any]:
    """
    Write `data/corrections-HASH.parquet` (`prompt`, `response`, `correction`, ...),
    `preference/corrections-HASH.parquet` (`prompt`, `chosen`, `rejected`, ...), `edits.png`, `examples.png` and the
    card `README.md`.

    Args:
        records (`Sequence[Correction]`):
            What the teacher answered; those without a correction are counted in the card.
        folder (`Path`):
            Where to.
        teacher (`str`):
            Who corrected, for the card.
        responses_by (`str`, *optional*, defaults to `"a language model"`):
            Who wrote the responses.
        prompt ([`TeacherPrompt`], *optional*):
            What the teacher was asked.
        kept (`Sequence[bool]`, *optional*):
            For each record, whether a verification lets it pass. By default all do.
        hub_dataset_id (`str`, *optional*):
            Where it will be pushed to.
        n_items (`int`, *optional*):
            How many items there were to answer; those without a record are counted as missing. By default the records.

    Returns:
        `dict`: `"counts"`, `"correction_edit_ratio"` (a summary with its interval) and `"examples"`.

    Raises:
        BadInput: If there is no correction at all, or a column holds values of different types.
    """
    passed = [True] * len(records) if kept is None else kept
    usable = [r for r, good in zip(records, passed, strict=True) if r.status in (CORRECTED, UNCHANGED) and good]
    changed = [record for record in usable if record.status == CORRECTED]
    counts = {
        "kept": len(usable),
        "corrected": len(changed),
        "unchanged": len(usable) - len(changed),
        "not_better": sum(r.status in (CORRECTED, UNCHANGED) for r in records) - len(usable),
        "unparsable": sum(r.status == UNPARSABLE for r in records),
        "missing": sum(r.status in (FAILED, SKIPPED) for r in records) + (n_items or len(records)) - len(records),
    }
    if not usable:
        raise BadInput(
            f"There is no correction to write: {counts['unparsable']} replies could not be read (asked for again only "
            f"with `retry_unparsable`), {counts['missing']} items have no answer (asked again in the next run), and "
            f"{counts['not_better']} corrections are not rated above their response."
        )
    pairs = to_dataset(usable)
    configs = [{"config_name": "default", "default": True, "data_files": _write_parquet(pairs, folder, "data")}]
    if changed:
        preferences = _write_parquet(to_preference_columns(to_dataset(changed)), folder, "preference")
        configs.append({"config_name": "preference", "data_files": preferences})

    ratios = [edit_ratio(record.response, record.correction) for record in usable]
    summary = summarize(ratios, rate=False)
    examples = [{"prompt": r.prompt, "response": r.response, "correction": r.correction} for r in changed[:8]]
    pictures = []
    for caption, picture in (
        ("Edits per response", plot_edit_distribution([], ratios, folder / "edits.png", ("", "corrections"))),
        ("Examples", plot_examples(examples, folder / "examples.png") if examples else None),
    ):
        if picture is not None:
            pictures.append((caption, picture.name))
    own = ("prompt", "response", "correction", "teacher", "status", "key")
    environment = Environment(trim_blocks=False, keep_trailing_newline=True)
    card = environment.from_string((TEMPLATES / "dataset_card.md").read_text(encoding="utf-8")).render(
        card_data=DatasetCardData(
            task_categories=["text-generation"],
            tags=["correction_trl", "corrections", "preference", "trl"],
            configs=configs,
        ).to_yaml(),
        title=(hub_dataset_id or "corrections").rpartition("/")[2],
        counts=counts,
        teacher=teacher,
        responses_by=responses_by,
        edits=f"{summary['mean']:.1%} of the longer text on average" if usable else "-",
        pictures=pictures,
        examples=examples_markdown(examples),
        repository=hub_dataset_id or "path/to/this/folder",
        columns=[name for name in pairs.column_names if name not in own],
        prompt_template=prompt.path.read_text(encoding="utf-8") if prompt is not None else None,
        template_version=prompt.version if prompt is not None else None,
        command=launched(command_line(), "python"),
        versions=installed_versions(),
    )
    DatasetCard(card).save(folder / "README.md")
    return {"counts": counts, "correction_edit_ratio": summary, "examples": examples}


def _write_parquet(dataset: Dataset, folder: Path, name: str) -> str:
    """
    A parquet file with a hash of its contents in its name, in place of the one that was there: `load_dataset` caches
    a local dataset by the file names in its card, and would go on showing what an earlier collection held.
    """
    directory = folder / name
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / "unfinished"
    dataset.to_parquet(unfinished)
    digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()[:12]
    for old in directory.glob("corrections-*.parquet"):
        old.unlink()
    file = unfinished.rename(directory / f"corrections-{digest}.parquet")
    return file.relative_to(folder).as_posix()
