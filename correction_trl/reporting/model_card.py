"""The model card: what was trained on what, what changed, with which command, and where the method departs."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data_utils import is_hub_id, public_name
from .edits import examples_markdown
from .privacy import launched, redact_secrets, without_run_directories
from .run_metrics import (
    METRIC_DESCRIPTIONS,
    format_counts,
    format_seconds,
    format_summary,
    is_number,
    with_unit,
    write_atomically,
)


_METHOD_KEYS = {"name", "tag", "paper_title", "paper_id", "url", "citation", "description", "departures"}


def write_model_card(
    output_dir: str | os.PathLike,
    *,
    model_name: str,
    base_model: str | None,
    dataset_name: str | Sequence[str] | None,
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
    run_pages: Mapping[str, str] | None = None,
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
        dataset_name (`str` or `list[str]` or `None`):
            Hub id or local path of the training data, or of each part of a mixture.
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
        run_pages (`dict[str, str]`, *optional*):
            The run's pages at trackers, by the tracker's name; see [`run_pages`].

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
    datasets = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name or ())
    hub_datasets, measured_on = _named(datasets)

    card_data = ModelCardData(
        base_model=base_model if is_hub_id(base_model) else None,
        datasets=hub_datasets,
        library_name="peft" if peft else "transformers",
        license=license,
        model_name=model_name,
        pipeline_tag=pipeline_tag,
        tags=["trl", "correction_trl", method_tag, *tags],
        eval_results=[
            EvalResult(
                task_type=pipeline_tag,
                **measured_on,
                metric_type=name,
                metric_name=f"{name}: {METRIC_DESCRIPTIONS[name]}" if name in METRIC_DESCRIPTIONS else name,
                metric_value=round(summary["mean"], 6),
                metric_args={key: round(summary[key], 6) for key in ("low", "high", "n") if is_number(summary[key])},
            )
            for name, summary in metrics["after"].items()
            if is_number(summary["mean"])
        ]
        or None,
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(Path(__file__).parents[1] / "templates" / "model_card.md"),
        model_name=model_name,
        base_model=_link(base_model, "https://huggingface.co/"),
        dataset=", ".join(_link(name, "https://huggingface.co/datasets/") for name in datasets),
        method=method,
        peft=peft,
        results=[
            {
                "name": name,
                "label": f"`{name}`".replace("|", "\\|") + with_unit(name).removeprefix(name),
                "description": METRIC_DESCRIPTIONS.get(name),
                "before": format_summary(name, metrics["before"][name]),
                "after": format_summary(name, metrics["after"][name]),
                "difference": format_summary(name, metrics["difference"].get(name), difference=True),
                "problems": format_counts(name, metrics),
            }
            for name in metrics["after"]
        ],
        warnings=metrics.get("warnings", []),
        pictures=[
            (caption, _picture_link(picture, output_dir))
            for caption, picture in (pictures or {}).items()
            if picture is not None
        ],
        examples=examples_markdown(examples),
        hub_model_id=hub_model_id,
        usage=usage,
        pipeline_tag=pipeline_tag,
        time=format_seconds(metrics["seconds"]) if is_number(metrics["seconds"]) else None,
        command=launched(metrics["command"] if command is None else command),
        versions=metrics["versions"],
        run_pages=run_pages,
    )
    path = output_dir / "README.md"
    write_atomically(path, redact_secrets(without_run_directories(str(card), output_dir)))
    return path


def _named(datasets: Sequence[str]) -> tuple[list[str] | str | None, dict[str, str]]:
    """The ids that the card's metadata name, and what the results are said to be measured on: of a mixture, none."""
    hub_ids = [name for name in datasets if is_hub_id(name)]
    if len(datasets) != 1:
        return hub_ids or None, {"dataset_type": "custom", "dataset_name": "evaluation problems"}
    hub_id = hub_ids[0] if hub_ids else None
    return hub_id, {"dataset_type": hub_id or "custom", "dataset_name": public_name(datasets[0])}


def _link(name: str | None, prefix: str) -> str | None:
    if name is None:
        return None
    return f"[{name}]({prefix}{name})" if is_hub_id(name) else f"`{public_name(name)}` (local)"


def _picture_link(picture: str | os.PathLike, output_dir: Path) -> str:
    picture = Path(picture)
    if not picture.is_file():
        raise ValueError(f"The picture {picture} does not exist; draw it before writing the card.")
    if not picture.resolve().is_relative_to(output_dir.resolve()):
        raise ValueError(f"The picture {picture} is outside {output_dir} and would not be pushed; draw it inside.")
    return quote(picture.resolve().relative_to(output_dir.resolve()).as_posix())
