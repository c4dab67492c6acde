"""Collecting corrections: what is in the store is not asked again, what is asked is stored before it is used."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import TeacherFailed
from ..functions import Prompt, call_value_function
from .base import Item, Teacher, as_teacher, batches, items_of, make_items
from .store import FAILED, STATUSES, UNCHANGED, UNPARSABLE, Correction, CorrectionStore


_CHUNK = 512  # items that are looked up, and claimed, at a time
_CLAIM = 3600.0  # seconds in which a chunk should be answered; the claims of a process that died end at once
_FIRST = 50  # so many answers say whether a teacher works at all


@dataclass
class Progress:
    """
    How far a collection is.

    Args:
        total (`int`, *optional*):
            Items that there are, if that is known.
        found (`int`, *optional*, defaults to `0`):
            Items whose answer was in the store already, or came from another process; equal items count each.
        asked (`int`, *optional*, defaults to `0`):
            Items that were asked in this run and have been answered, or have failed.
        statuses (`dict[str, int]`, *optional*):
            Of the items asked: how many became what.
        tokens_in, tokens_out (`int`, *optional*, defaults to `0`):
            Tokens that the teacher read and wrote.
        cost (`float`, *optional*, defaults to `0.0`):
            Their price.
        failures (`dict[str, int]`, *optional*):
            Reasons for which there is no correction, and how often.
        started (`float`, *optional*):
            `time.monotonic()` at the beginning.
    """

    total: int | None = None
    found: int = 0
    asked: int = 0
    statuses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end, at the pace so far; `None` if that cannot be told."""
        if self.total is None or not self.asked:
            return None
        return max(0, self.total - self.found - self.asked) * self.seconds / self.asked

    @property
    def without_correction(self) -> int:
        """Items asked that failed, or got a reply that could not be read."""
        return self.statuses[FAILED] + self.statuses[UNPARSABLE]

    def as_dict(self) -> dict[str, Any]:
        """What was done, for `metrics.json`."""
        return {
            "found_in_the_store": self.found,
            "asked": self.asked,
            **self.statuses,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost": self.cost,
            "failures": self.failures,
        }

    def count(self, records: Sequence[Correction]) -> None:
        """Count what the teacher has answered."""
        for record in records:
            self.asked += 1
            self.statuses[record.status] += 1
            self.tokens_in += record.tokens_in
            self.tokens_out += record.tokens_out
            self.cost += record.cost
            if record.status in (FAILED, UNPARSABLE):
                reason = f"{record.status}: {record.reason}"
                if reason in self.failures or len(self.failures) < 1000:
                    self.failures[reason] = self.failures.get(reason, 0) + 1


def collect(
    store: CorrectionStore,
    teacher: Any,
    rows: Iterable[dict[str, Any]],
    max_failed_share: float = 0.1,
    retry_unparsable: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """
    Have responses corrected, each once and for good.

    Rows whose answer is in the store are not asked. Others are claimed, so that several processes can share a store
    and the work, and their answers are stored as they come. A run that ends in whatever way goes on where it was when
    it is started again; what failed is then asked again.

    Args:
        store ([`CorrectionStore`]):
            Where the answers are kept.
        teacher ([`Teacher`] or `Callable` or object with a method `correct`):
            Who corrects.
        rows (`Iterable[dict]`):
            Rows with `prompt`, `response` and the further columns; read as they are needed.
        max_failed_share (`float`, *optional*, defaults to `0.1`):
            Share of the items that may fail or get an unreadable reply; with more, the collection stops.
        retry_unparsable (`bool`, *optional*, defaults to `False`):
            Ask once more where the store has a reply that could not be read.
        on_progress (`Callable[[Progress], None]`, *optional*):
            Called after every piece of work.

    Returns:
        [`Progress`]: What was done.

    Raises:
        BadInput: If a row is not usable, or the store cannot be written.
        TeacherFailed: If the teacher is down, or too much of what it was asked failed. What it answered is stored.
    """
    teacher = as_teacher(teacher)
    progress = Progress(total=len(rows) if isinstance(rows, Sized) else None)
    say = on_progress or (lambda progress: None)
    if retry_unparsable:
        unreadable = [record for record in store if record.status == UNPARSABLE]
        store.add([replace(record, status=FAILED) for record in unreadable], replace=True)

    def keep(records: list[Correction]) -> None:
        store.add(records)
        progress.count(records)
        say(progress)
        _check_share(progress, max_failed_share, teacher)

    elsewhere: dict[str, Item] = {}  # claimed by another process
    seen: set[str] = set()

    def to_ask() -> Iterator[Item]:
        for chunk in batches(items_of(rows), _CHUNK):
            items = {}
            for item in chunk:
                key = teacher.key(item)
                if key in seen:
                    progress.found += 1
                else:
                    seen.add(key)
                    items[key] = item
            missing = store.missing(list(items))
            claimed = store.claim(missing, seconds=_CLAIM)
            elsewhere.update((key, items[key]) for key in set(missing) - set(claimed))
            progress.found += len(items) - len(missing)
            say(progress)
            yield from (items[key] for key in claimed)

    teacher.answer(to_ask(), keep)
    while elsewhere:
        missing = store.missing(list(elsewhere))
        claimed = store.claim(missing, seconds=_CLAIM)
        progress.found += len(elsewhere) - len(missing)
        mine = [elsewhere[key] for key in claimed]
        elsewhere = {key: elsewhere[key] for key in missing if key not in set(claimed)}
        if mine:
            teacher.answer(iter(mine), keep)
        elif elsewhere:
            time.sleep(0.5)
        say(progress)
    _check_share(progress, max_failed_share, teacher, at_the_end=True)
    return progress


def _check_share(progress: Progress, max_failed_share: float, teacher: Teacher, at_the_end: bool = False) -> None:
    """Too much has failed for the share to be kept at the end; or, at the beginning, next to nothing works."""
    bad = progress.without_correction
    useless = progress.asked >= _FIRST and bad > max(0.9, max_failed_share) * progress.asked
    if at_the_end:
        too_many = bad > max_failed_share * progress.asked
    else:
        too_many = progress.total is not None and bad > max_failed_share * (progress.total - progress.found)
    if too_many or useless:
        reason, count = max(progress.failures.items(), key=lambda pair: pair[1])
        raise TeacherFailed(
            f"{bad} of the {progress.asked} items asked have no correction, more than the share of "
            f"{max_failed_share:.0%} that is allowed; the most frequent reason ({count} times) is: {reason}. All "
            f"answers are stored{_when_asked_again(progress, teacher)}."
        )


def _when_asked_again(progress: Progress, teacher: Teacher) -> str:
    """What becomes of the items without a correction in a later run, to end a sentence with."""
    again = ""
    if progress.statuses[FAILED]:
        again += "; what failed is asked again when the run is started again"
    if progress.statuses[UNPARSABLE]:
        again += "; a reply that could not be read is asked for again only with `retry_unparsable`"
        if teacher.prompt is not None and teacher.prompt.reply_tag:
            again += ", and the template `plain_correction` asks a weak model for no tags"
    return again


class StoringTeacher:
    """
    A teacher whose answers are kept in a store: what was answered once is not asked again, by no run.

    Args:
        teacher ([`Teacher`] or `Callable` or object with a method `correct`):
            Who corrects.
        store ([`CorrectionStore`] or `str` or `Path`):
            The store, or its file.
    """

    def __init__(self, teacher: Any, store: CorrectionStore | str | Path):
        self.teacher = as_teacher(teacher)
        self.store = store if isinstance(store, CorrectionStore) else CorrectionStore(store)
        self.waits_for_a_server = self.teacher.waits_for_a_server

    def correct(self, prompts: Sequence[Prompt], responses: Sequence[str], **columns: Sequence) -> list[str | None]:
        """As [`Teacher.correct`], which asks for what the store does not hold; `BadInput` if that cannot be used."""
        items = list(make_items(prompts, responses, columns))
        rows = [{**item.columns, "prompt": item.prompt, "response": item.response} for item in items]
        collect(self.store, self.teacher, rows, max_failed_share=1.0)  # whoever asks counts what is missing
        keys = [self.teacher.key(item) for item in items]
        found = self.store.get(keys)
        return [found[key].correction if key in found else None for key in keys]


def improves(
    value_function: Callable,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    corrections: Sequence[str | None],
    columns: dict[str, list],
) -> list[bool | None]:
    """
    Whether a value function rates corrections higher than the responses.

    Args:
        value_function (`Callable`):
            With TRL's `reward_funcs` signature.
        prompts (`Sequence[str | list[dict]]`):
            The prompts.
        responses (`Sequence[str]`):
            The responses.
        corrections (`Sequence[str | None]`):
            Their corrections.
        columns (`dict[str, Sequence]`):
            The dataset's further columns.

    Returns:
        `list[bool | None]`: `None` where there is no correction, or one of the two could not be judged.
    """
    before = call_value_function(value_function, prompts, responses, columns)
    texts = [response if c is None else c for c, response in zip(corrections, responses, strict=True)]
    after = call_value_function(value_function, prompts, texts, columns)
    return [
        None if c is None or old is None or new is None else new > old
        for c, old, new in zip(corrections, before, after, strict=True)
    ]


def kept_records(value_function: Callable, records: Sequence[Correction]) -> list[bool | None]:
    """
    Which records a dataset keeps: corrections that the value function rates above the response, and responses in which
    the teacher found nothing to correct.

    Args:
        value_function (`Callable`):
            With TRL's `reward_funcs` signature.
        records (`Sequence[Correction]`):
            From the store.

    Returns:
        `list[bool | None]`: `None` where there is no correction, or one of the two could not be judged.
    """
    names = dict.fromkeys(name for record in records for name in record.columns)
    columns = {name: [record.columns.get(name) for record in records] for name in names}
    prompts, responses = [r.prompt for r in records], [r.response for r in records]
    better = improves(value_function, prompts, responses, [r.correction for r in records], columns)
    return [is_better or r.status == UNCHANGED for is_better, r in zip(better, records, strict=True)]
