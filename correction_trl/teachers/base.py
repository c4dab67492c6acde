"""What all teachers have in common: who they are, and that an answer is kept as soon as it is there."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..errors import BadInput
from ..functions import Prompt, call_teacher, teacher_name, whole_characters
from .prompting import TeacherPrompt
from .store import CORRECTED, SKIPPED, UNCHANGED, Correction, correction_key


@dataclass
class Item:
    """
    One response to correct.

    Args:
        prompt (`str` or `list[dict]`):
            The prompt as it stands in the dataset.
        response (`str`):
            What the model wrote.
        columns (`dict`, *optional*):
            The dataset's further columns.
    """

    prompt: Prompt
    response: str
    columns: dict[str, Any] = field(default_factory=dict)
    key: str = ""  # set by the teacher that is asked


Keep = Callable[[list[Correction]], None]


class Teacher:
    """
    Base class of the teachers. A subclass says who it is and answers items; `correct` follows from that.

    Attributes:
        name (`str`):
            Who it is: part of the key of every correction.
        template_version (`str`):
            Version of its correction prompt, if it has one.
        sampling (`dict`):
            Its sampling parameters.
        prompt ([`TeacherPrompt`] or `None`):
            That prompt.
        waits_for_a_server (`bool`):
            Whether its time passes with waiting, so that a trainer can train meanwhile.
    """

    name = ""
    template_version = ""
    prompt: TeacherPrompt | None = None
    waits_for_a_server = False

    def __init__(self):
        self.sampling: dict[str, Any] = {}

    def correct(self, prompts: Sequence[Prompt], responses: Sequence[str], **columns: Sequence) -> list[str | None]:
        """
        Correct a batch of responses.

        Args:
            prompts (`Sequence[str | list[dict]]`):
                Prompts as they stand in the dataset.
            responses (`Sequence[str]`):
                What the model wrote.
            **columns (`Sequence`):
                The dataset's further columns.

        Returns:
            `list[str | None]`: The corrected responses; `None` where there is none.

        Raises:
            TeacherFailed: If the teacher is down.
        """
        items = list(make_items(prompts, responses, columns))
        keys = [self.key(item) for item in items]
        found = {}
        self.answer(items, lambda records: found.update((record.key, record.correction) for record in records))
        return [found.get(key) for key in keys]

    def answer(self, items: Iterable[Item], keep: Keep) -> None:
        """
        Answer items, in any order. Each answer is handed to `keep` as soon as it is there, and is safe when that
        returns.

        Args:
            items (`Iterable[Item]`):
                Taken one by one, as they are needed.
            keep (`Callable[[list[Correction]], None]`):
                Takes the answers; called from one thread at a time.

        Raises:
            TeacherFailed: If the teacher is down.
        """
        raise NotImplementedError

    def seen_columns(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Those of an item's columns that the teacher sees, and that are therefore part of the key: all of them."""
        return columns

    def key(self, item: Item) -> str:
        """The key under which the answer to an item is stored."""
        if not item.key:
            item.key = correction_key(
                item.prompt,
                item.response,
                self.name,
                self.template_version,
                self.sampling,
                self.seen_columns(item.columns),
            )
        return item.key

    def keys_of(self, rows: Iterable[dict[str, Any]]) -> list[str]:
        """The keys of rows with `prompt`, `response` and further columns, in their order."""
        return [self.key(item) for item in items_of(rows)]

    def record(self, item: Item, correction: str | None, status: str, **values: Any) -> Correction:
        """The answer to an item, as it is stored."""
        texts = {name: values.get(name) for name in ("reply", "reason") if values.get(name) is not None}
        values |= {name: whole_characters(text) for name, text in texts.items()}
        correction = correction if correction is None else whole_characters(correction)
        return Correction(
            key=self.key(item),
            prompt=item.prompt,
            response=item.response,
            correction=correction,
            status=status,
            teacher=self.name,
            template_version=self.template_version,
            sampling=self.sampling,
            columns=item.columns,
            **values,
        )


class FunctionTeacher(Teacher):
    """
    A Python function, or an object with a method `correct`, as a [`Teacher`].

    Its answers are stored under the function's name: give a function that has changed its mind another name, or use
    another store.

    Args:
        function (`Callable` or object with a method `correct`):
            Called with `prompts`, `responses` and the further columns of a batch; returns the corrected responses,
            `None` where it has none.
        batch_size (`int`, *optional*, defaults to `64`):
            Most items per call.
        name (`str`, *optional*):
            Its name; by default `module:function`.
    """

    def __init__(self, function: Any, batch_size: int = 64, name: str | None = None):
        super().__init__()
        self.function, self.batch_size = function, batch_size
        module = getattr(function, "__module__", None) or type(function).__module__
        self.name = name or f"{module}:{teacher_name(function)}"

    def answer(self, items: Iterable[Item], keep: Keep) -> None:
        for batch in batches(items, self.batch_size):
            names = dict.fromkeys(name for item in batch for name in item.columns)
            columns = {name: [item.columns.get(name) for item in batch] for name in names}
            corrections = call_teacher(
                self.function, [item.prompt for item in batch], [item.response for item in batch], columns
            )
            keep([self._record(item, correction) for item, correction in zip(batch, corrections, strict=True)])

    def _record(self, item: Item, correction: str | None) -> Correction:
        if correction is None:
            return self.record(item, None, SKIPPED, reason="the teacher returned None")
        return self.record(item, correction, UNCHANGED if correction == item.response else CORRECTED)


def as_teacher(teacher: Any) -> Teacher:
    """A [`Teacher`] as it is; anything else as a [`FunctionTeacher`]."""
    return teacher if isinstance(teacher, Teacher) else FunctionTeacher(teacher)


def make_items(prompts: Sequence[Prompt], responses: Sequence[str], columns: dict[str, Sequence]) -> Iterator[Item]:
    """Items from the columns of a batch."""
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        yield Item(prompt, response, {name: values[i] for name, values in columns.items()})


def items_of(rows: Iterable[dict[str, Any]]) -> Iterator[Item]:
    """
    Items from rows with `prompt`, `response` and further columns.

    Args:
        rows (`Iterable[dict]`):
            Read as they are needed.

    Raises:
        BadInput: If a row has no prompt, or no response that is text in whole characters.
    """
    for index, row in enumerate(rows):
        for name in ("prompt", "response"):
            if row.get(name) is None:
                raise BadInput(f"Row {index} has no {name!r}; its columns are {', '.join(row)}.")
        if not isinstance(row["response"], str):
            raise BadInput(f"Row {index}: the response is not text but {type(row['response']).__name__}.")
        if whole_characters(row["response"]) != row["response"]:
            raise BadInput(f"Row {index}: the response holds half of a character (a lone surrogate); remove it.")
        yield Item(row["prompt"], row["response"], {k: v for k, v in row.items() if k not in ("prompt", "response")})


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of at most `size` items, taken as they are needed."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
