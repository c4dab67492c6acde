"""Corrections that exist already, in a file or on the Hub, as a teacher."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..data_utils import load_split, message_text
from ..errors import BadInput
from ..functions import Prompt
from .base import Item, Keep, Teacher, batches
from .store import CORRECTED, SKIPPED, UNCHANGED


class StoredTeacher(Teacher):
    """
    Looks corrections up: for the same prompt and the same response; or, in a dataset without a column `response`, for
    the same prompt. Where there is none, it passes.

    Args:
        dataset_name (`str`):
            A Hub id, a folder, or a `.jsonl`, `.json`, `.csv` or `.parquet` file, with the columns `prompt`,
            `correction` (or TRL's `chosen`) and, if it has it, `response` (or `rejected`); plain or conversational.
        split (`str`, *optional*, defaults to `"train"`):
            Its split.

    Raises:
        BadInput: If the dataset cannot be loaded, or columns are missing.
    """

    def __init__(self, dataset_name: str, split: str = "train"):
        super().__init__()
        self.name = f"stored:{Path(dataset_name).name if Path(dataset_name).exists() else dataset_name}"
        dataset = load_split(dataset_name, None, split)
        columns = dataset.column_names
        correction = next((name for name in ("correction", "chosen") if name in columns), None)
        response = next((name for name in ("response", "rejected") if name in columns), None)
        if "prompt" not in columns or correction is None:
            raise BadInput(f"{dataset_name} needs the columns 'prompt' and 'correction'; it has {', '.join(columns)}.")
        self._by_prompt_alone = response is None
        self._corrections = {}
        for index, row in enumerate(dataset):
            for name in (correction, response):
                if name is not None and not isinstance(row[name], str | list | None):
                    kind = type(row[name]).__name__
                    raise BadInput(f"{dataset_name}, row {index}: the {name} is not text, or messages, but {kind}.")
            text = message_text(row[correction]) if row[correction] else None
            if text and text.strip():  # white space alone corrects nothing
                asked = message_text(row[response]) if response is not None and row[response] else None
                self._corrections[self._question(row["prompt"], asked)] = text

    def answer(self, items: Iterable[Item], keep: Keep) -> None:
        for batch in batches(items, 1000):
            keep([self._record(item) for item in batch])

    def _record(self, item: Item):
        correction = self._corrections.get(self._question(item.prompt, item.response))
        if correction is None:
            return self.record(item, None, SKIPPED, reason=f"{self.name} has no correction of it")
        return self.record(item, correction, UNCHANGED if correction == item.response else CORRECTED)

    def _question(self, prompt: Prompt, response: str | None) -> str:
        return json.dumps([prompt, None if self._by_prompt_alone else response], sort_keys=True)
