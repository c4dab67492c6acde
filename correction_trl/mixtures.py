"""Several datasets as one: the setting `datasets` of the training recipes, as in TRL's `DatasetMixtureConfig`."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import DatasetConfig

from .data_utils import file_loader, public_name
from .errors import BadInput, first_line


def read_mixture(datasets: Sequence[Any]) -> list[Any]:
    """
    The setting `datasets` as a YAML file gives it.

    Args:
        datasets (`list[dict]`):
            The fields of TRL's `DatasetConfig` for each: `path` (Hub id, folder or file), and optionally `name`,
            `data_dir`, `data_files`, `split` (`"train"`), `columns` and `fraction`. A text is the `path`.

    Returns:
        `list[DatasetConfig]`.

    Raises:
        BadInput: If a field is unknown or cannot be one, or only some datasets have a `fraction`.
    """
    configs = [_read_one(number, given) for number, given in enumerate(datasets, start=1)]
    with_fraction = [config.fraction is not None for config in configs]
    if any(with_fraction) and not all(with_fraction):
        raise BadInput(
            f"`datasets`, number {with_fraction.index(False) + 1}: has no `fraction`, and others have; give one to "
            "each or to none (then all rows of all are used)."
        )
    return configs


def _read_one(number: int, given: Any) -> DatasetConfig:
    known = list(DatasetConfig.__dataclass_fields__)
    given = vars(given) if isinstance(given, DatasetConfig) else {"path": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or not isinstance(given.get("path"), str) or not given["path"]:
        raise BadInput(f"`datasets`, number {number}: name the dataset: `path: ...` (Hub id, folder or file).")
    where = _place(number, given["path"])
    if unknown := next((key for key in given if key not in known), None):
        close = difflib.get_close_matches(str(unknown), known, n=1)
        guess = f"did you mean `{close[0]}`?" if close else f"it takes {', '.join(known)}."
        raise BadInput(f"{where}: `{unknown}` is unknown; {guess}")
    given = {key: value for key, value in given.items() if value is not None}
    fraction, columns = given.get("fraction", 1), given.get("columns", [])
    if not isinstance(fraction, int | float) or isinstance(fraction, bool) or not 0 < fraction < math.inf:
        raise BadInput(f"{where}: `fraction: {fraction}` must be a positive number, its share of the mixture.")
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise BadInput(f"{where}: `columns: {columns}` must be a list of names, such as [prompt, answer].")
    for key in ("name", "split", "data_dir"):
        if not isinstance(given.get(key, ""), str):
            raise BadInput(f"{where}: `{key}: {given[key]}` must be a text.")
    return DatasetConfig(**given)


def _place(number: int, path: str) -> str:
    return f"`datasets`, number {number} ({public_name(path)})"


def load_mixture(datasets: Sequence[Any]) -> Dataset:
    """
    Several datasets as one, by TRL's [`~trl.get_dataset`]: all of their rows, or, with a `fraction` for each, the
    first rows of each, in these shares, as many as there are without using a row twice.

    Args:
        datasets (`list[DatasetConfig]`):
            From [`read_mixture`].

    Raises:
        BadInput: If one cannot be loaded, lacks a column, has none of its rows in the mixture, or its columns are not
        those of the others.
    """
    loaded, configs = [], []
    for number, config in enumerate(datasets, start=1):
        where = _place(number, config.path)
        # Each alone first: TRL's mixture does not say which of them is at fault
        alone = dataclasses.replace(config, columns=None, fraction=None)
        if Path(config.path).is_file():
            alone = dataclasses.replace(alone, path=file_loader(Path(config.path)), data_files=str(config.path))
        try:
            dataset = get_dataset(DatasetMixtureConfig(datasets=[alone]))["train"]
        except Exception as error:
            reason = first_line(error.__cause__ or error).rstrip(".")
            raise BadInput(f"{where}: its split {config.split!r} cannot be loaded ({reason}).") from error
        missing = [column for column in config.columns or () if column not in dataset.column_names]
        if missing:
            raise BadInput(
                f"{where}: it has no column {missing[0]!r}; its columns are {', '.join(dataset.column_names)}."
            )
        if len(dataset) == 0:
            raise BadInput(f"{where}: it is empty; take it out.")
        loaded.append(dataset if config.columns is None else dataset.select_columns(config.columns))
        configs.append(dataclasses.replace(alone, columns=config.columns, fraction=config.fraction))
    _check_same_columns(loaded, datasets)
    mixture = get_dataset(DatasetMixtureConfig(datasets=configs))["train"]
    if configs[0].fraction is not None:
        fractions = [config.fraction / sum(other.fraction for other in configs) for config in configs]
        total = min(len(dataset) / fraction for dataset, fraction in zip(loaded, fractions, strict=True))
        for number, fraction in enumerate(fractions, start=1):
            if round(fraction * total) == 0:
                config = datasets[number - 1]
                raise BadInput(
                    f"{_place(number, config.path)}: with `fraction: {config.fraction}` none of its rows is in the "
                    f"mixture of {len(mixture)}; raise it."
                )
    return mixture


def _check_same_columns(loaded: Sequence[Dataset], configs: Sequence[Any]) -> None:
    first = loaded[0]
    for number, (dataset, config) in enumerate(zip(loaded, configs, strict=True), start=1):
        where = _place(number, config.path)
        if set(dataset.column_names) != set(first.column_names):
            raise BadInput(
                f"{where}: its columns are {', '.join(dataset.column_names)}, and those of number 1 are "
                f"{', '.join(first.column_names)}; choose the same for each with `columns: [...]`."
            )
        for column, feature in first.features.items():
            if dataset.features[column] != feature:
                raise BadInput(
                    f"{where}: its column {column!r} is {dataset.features[column]}, and that of number 1 is "
                    f"{feature}; write both alike (texts, or lists of messages), or leave the column out with "
                    "`columns: [...]`."
                )
