"""Where corrections are kept: one SQLite file in which every answer of a teacher is on disk before it is used.

Corrections cost money or a person's time. Each has a **key**, the hash of what was asked (prompt, response, teacher,
version of the prompt template, sampling parameters), so that a run that is killed at any instant and started again
asks for exactly what is missing, and nothing is bought twice. Several threads and processes of one machine can share a
store; they divide the work by claims, which end with the process that made them.

A damaged file is never used: `python -m correction_trl.teachers.store rescue DAMAGED NEW` copies what is intact.
"""

import hashlib
import json
import os
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import date
from datetime import time as dtime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ..errors import BadInput
from ..functions import Prompt


if TYPE_CHECKING:
    from datasets import Dataset


# What can become of a response. The first three are answers, kept for good; the last two are asked again.
CORRECTED, UNCHANGED, UNPARSABLE, SKIPPED, FAILED = "corrected", "unchanged", "unparsable", "skipped", "failed"
STATUSES = (CORRECTED, UNCHANGED, UNPARSABLE, SKIPPED, FAILED)
ASKED_AGAIN = (SKIPPED, FAILED)

_FORMAT = 1  # of the tables; kept in the file's `user_version`


@dataclass
class Correction:
    """
    One answer of a teacher.

    Args:
        key (`str`):
            From [`correction_key`].
        prompt (`str` or `list[dict]`):
            The prompt as it stands in the dataset.
        response (`str`):
            What the model wrote.
        correction (`str`, *optional*):
            The corrected response. Equal to `response` where nothing had to be corrected; `None` if there is none.
        status (`str`, defaults to `"corrected"`):
            `"corrected"`; `"unchanged"` (right as it is); `"unparsable"` (a reply, but not in the form that was asked
            for); `"skipped"` (a person passed, a function returned `None`); `"failed"` (no reply). The last two are
            asked again, and replaced by a later answer.
        teacher (`str`):
            Who answered: part of the key.
        template_version (`str`, *optional*, defaults to `""`):
            Version of the correction prompt; `""` for a teacher without one.
        sampling (`dict`, *optional*):
            Sampling parameters of the teacher.
        reply (`str`, *optional*):
            The raw reply, where there is one.
        reason (`str`, *optional*):
            Why there is no correction.
        annotator (`str`, *optional*):
            Which person answered.
        tokens_in, tokens_out (`int`, *optional*, defaults to `0`):
            Tokens that the teacher read and wrote, all attempts together.
        cost (`float`, *optional*, defaults to `0.0`):
            Their price, in the currency of the prices given.
        created (`float`, *optional*):
            Time of the answer, in seconds since 1970 (UTC). By default now.
        columns (`dict`, *optional*):
            The dataset's further columns.
    """

    key: str
    prompt: Prompt
    response: str
    correction: str | None
    status: str = CORRECTED
    teacher: str = ""
    template_version: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    reply: str | None = None
    reason: str | None = None
    annotator: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    created: float = field(default_factory=time.time)
    columns: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"Unknown status {self.status!r}; expected one of {', '.join(STATUSES)}.")
        if (self.correction is not None) != (self.status in (CORRECTED, UNCHANGED)):
            raise ValueError(f"A record with status {self.status!r} and the correction {self.correction!r:.80}.")


_FIELDS = [f.name for f in fields(Correction)]
_JSON_FIELDS = {"prompt", "sampling", "columns"}
_TYPES = {"tokens_in": "INTEGER", "tokens_out": "INTEGER", "cost": "REAL", "created": "REAL"}
_PLACES = ", ".join("?" * (len(_FIELDS) + 1))
_INSERT = (
    f"INSERT INTO corrections ({', '.join(_FIELDS)}, checksum) VALUES ({_PLACES}) ON CONFLICT (key) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in [*_FIELDS, "checksum"])
    + f" WHERE corrections.status IN {ASKED_AGAIN}"
)
_SELECT = f"SELECT {', '.join(_FIELDS)}, checksum FROM corrections"


def correction_key(
    prompt: Prompt,
    response: str,
    teacher: str,
    template_version: str = "",
    sampling: dict[str, Any] | None = None,
    columns: dict[str, Any] | None = None,
) -> str:
    """
    Key of a correction: the same for the same question, in every process and on every machine.

    Args:
        prompt (`str` or `list[dict]`):
            The prompt as it stands in the dataset.
        response (`str`):
            The response to correct.
        teacher (`str`):
            Name of the teacher.
        template_version (`str`, *optional*, defaults to `""`):
            Version of its prompt template.
        sampling (`dict`, *optional*):
            Its sampling parameters.
        columns (`dict`, *optional*):
            Those further columns that the teacher sees (a reference answer, feedback).

    Returns:
        `str`: 64 hexadecimal digits.

    Raises:
        BadInput: If a column holds something that has no JSON form.
    """
    question = [prompt, response, teacher, template_version, sampling or {}, columns or {}]
    return hashlib.sha256(_to_json(question).encode()).hexdigest()


class CorrectionStore:
    """
    A store of corrections: one SQLite file, with its write-ahead log beside it while it is open.

    `add` returns when the records are on the disk (`synchronous=FULL`). The file can be read with any SQLite tool; the
    table is `corrections`, its columns are the fields of [`Correction`].

    Example:

    ```python
    from correction_trl.teachers import Correction, CorrectionStore, correction_key

    with CorrectionStore("corrections.sqlite") as store:
        key = correction_key("1 + 1 =", "3", teacher="me")
        store.add([Correction(key, "1 + 1 =", "3", "2", teacher="me")])
        dataset = store.to_dataset()  # columns prompt, response, correction, ...
    ```

    Args:
        path (`str` or `Path`):
            The file; it and its folder are made if they do not exist. It must lie on a local disk.
        timeout (`float`, *optional*, defaults to `30.0`):
            Seconds to wait while another process writes.

    Raises:
        BadInput: If the file cannot be opened, is no store, or is damaged.
    """

    def __init__(self, path: str | os.PathLike, timeout: float = 30.0):
        self.path, self.timeout = Path(path), timeout
        self._lock = threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=timeout, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise BadInput(f"The store {self.path} cannot be opened ({error}).") from None
        try:
            with self._sentences("opened"):
                self._open()
            self._check()
        except BaseException:
            self._connection.close()
            raise

    def _open(self):
        execute = self._connection.execute
        tables = {name for (name,) in execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        version = execute("PRAGMA user_version").fetchone()[0]
        if (tables and "corrections" not in tables) or version > _FORMAT:
            raise BadInput(
                f"{self.path} is no store of corrections of this version of correction_trl; name another file."
            )
        if execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise BadInput(f"The store {self.path} must lie on a local disk: SQLite's write-ahead log needs one.")
        execute("PRAGMA synchronous = FULL")
        if tables:
            return
        columns = ", ".join(f"{name} {_TYPES.get(name, 'TEXT')}" for name in _FIELDS[1:])
        with self._transaction():
            execute(
                "CREATE TABLE IF NOT EXISTS corrections "
                f"(row INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, {columns}, checksum TEXT NOT NULL)"
            )
            execute(
                "CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, host TEXT NOT NULL, "
                "pid INTEGER NOT NULL, started REAL NOT NULL, until REAL NOT NULL)"
            )
            execute(f"PRAGMA user_version = {_FORMAT}")

    def _check(self):
        """SQLite checks its own structure; the checksums tell whether the contents are what was written."""
        structure, intact, damaged = _examine(self._connection)
        if structure != "ok" or damaged:
            raise BadInput(
                f"The store {self.path} is damaged ({damaged} of {intact + damaged} corrections"
                f"{'' if structure == 'ok' else f'; SQLite says: {structure}'}). What is intact is copied by `python "
                f"-m correction_trl.teachers.store rescue {self.path} NEW.sqlite`; go on with the new file."
            )

    # ------------------------------------------------------------------ reading

    def get(self, keys: Sequence[str]) -> dict[str, Correction]:
        """
        The records that there are for some keys, by key; failed and skipped ones included.

        Args:
            keys (`Sequence[str]`):
                From [`correction_key`].
        """
        found = {}
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            with self._sentences("read"):
                rows = self._connection.execute(f"{_SELECT} WHERE key IN ({', '.join('?' * len(some))})", some)
                found.update((row[0], self._record(row)) for row in rows.fetchall())
        return found

    def missing(self, keys: Sequence[str]) -> list[str]:
        """
        Those keys, each once and in their order, that have no answer yet: nothing stored, or a failure or a skip.

        Args:
            keys (`Sequence[str]`):
                From [`correction_key`].
        """
        answered = set()
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            with self._sentences("read"):
                rows = self._connection.execute(
                    f"SELECT key FROM corrections WHERE key IN ({', '.join('?' * len(some))}) "
                    f"AND status NOT IN {ASKED_AGAIN}",
                    some,
                )
                answered.update(key for (key,) in rows.fetchall())
        return [key for key in dict.fromkeys(keys) if key not in answered]

    def __len__(self) -> int:
        """Number of records, failed and skipped ones included."""
        with self._sentences("read"):
            return self._connection.execute("SELECT count(*) FROM corrections").fetchone()[0]

    def __iter__(self) -> Iterator[Correction]:
        """The records in the order in which their keys were first stored."""
        last = -1
        while True:
            with self._sentences("read"):
                rows = self._connection.execute(
                    f"{_SELECT.replace('SELECT', 'SELECT row,', 1)} WHERE row > ? ORDER BY row LIMIT 500", (last,)
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from (self._record(row[1:]) for row in rows)

    def counts(self) -> dict[str, int]:
        """Number of records by status; all statuses are there."""
        with self._sentences("read"):
            rows = self._connection.execute("SELECT status, count(*) FROM corrections GROUP BY status").fetchall()
        return {**dict.fromkeys(STATUSES, 0), **dict(rows)}

    def _record(self, row: tuple) -> Correction:
        if _checksum(row[:-1]) != row[-1]:
            raise BadInput(
                f"The store {self.path} is damaged: the record {row[0]!r:.80} is not what was written. What is intact "
                f"is copied by `python -m correction_trl.teachers.store rescue {self.path} NEW.sqlite`."
            )
        return _from_row(row)

    # ------------------------------------------------------------------ writing

    def add(self, records: Iterable[Correction], replace: bool = False) -> int:
        """
        Store records. They are on the disk when this returns: all of them, or, if it raises, none.

        A key that has an answer already keeps it; a failure or a skip gives way to a later record.

        Args:
            records (`Iterable[Correction]`):
                What to store.
            replace (`bool`, *optional*, defaults to `False`):
                Put the records in the place of earlier answers (a person has changed their mind).

        Returns:
            `int`: How many records were written.

        Raises:
            BadInput: If the file cannot be written (disk full, locked, damaged); what was stored before is intact.
        """
        rows = [_to_row(record) for record in records]
        if not rows:
            return 0
        insert = _INSERT.partition(" WHERE ")[0] if replace else _INSERT
        with self._sentences("written"), self._transaction():
            before = self._connection.total_changes
            self._connection.executemany(insert, rows)
            added = self._connection.total_changes - before
            self._connection.executemany("DELETE FROM claims WHERE key = ?", [(row[0],) for row in rows])
            return added

    # ------------------------------------------------------------------ dividing the work

    def claim(
        self, keys: Sequence[str], owner: str = "", seconds: float = 900.0, limit: int | None = None
    ) -> list[str]:
        """
        Claim keys without an answer for one owner, so that no other process, or person, is given the same ones.

        A claim ends when its record is added, when it is released, after `seconds`, or with the process that made it.

        Args:
            keys (`Sequence[str]`):
                What to claim.
            owner (`str`, *optional*, defaults to `""`):
                Who claims, within this process (one person's session). Claims of the same owner are renewed.
            seconds (`float`, *optional*, defaults to `900.0`):
                How long the claim lasts.
            limit (`int`, *optional*):
                Claim the first so many that are free.

        Returns:
            `list[str]`: The keys that now belong to the owner, in their order.
        """
        host, pid, started = _this_process()
        with self._sentences("written"), self._transaction():
            now = time.time()
            taken = {}
            for key, other, other_host, other_pid, other_started, until in self._connection.execute(
                "SELECT key, owner, host, pid, started, until FROM claims"
            ).fetchall():
                mine = (other, other_host, other_pid, other_started) == (owner, host, pid, started)
                if not mine and until > now and _is_alive(other_host, other_pid, other_started):
                    taken[key] = other
            free = [key for key in self.missing(keys) if key not in taken][:limit]
            self._connection.executemany(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?)",
                [(key, owner, host, pid, started, now + seconds) for key in free],
            )
        return free

    def release(self, keys: Sequence[str], owner: str = "") -> None:
        """
        Give claimed keys back unanswered.

        Args:
            keys (`Sequence[str]`):
                What to give back.
            owner (`str`, *optional*, defaults to `""`):
                Who had claimed them.
        """
        host, pid, started = _this_process()
        with self._sentences("written"), self._transaction():
            self._connection.executemany(
                "DELETE FROM claims WHERE key = ? AND owner = ? AND host = ? AND pid = ? AND started = ?",
                [(key, owner, host, pid, started) for key in keys],
            )

    # ------------------------------------------------------------------ what it is for

    def to_dataset(self, statuses: Sequence[str] = (CORRECTED, UNCHANGED)) -> "Dataset":
        """
        The corrections as a dataset of stored pairs, as `CorrectionOptimizationTrainer` reads it. For TRL's
        `DPOTrainer`, [`~correction_trl.data_utils.to_preference_columns`] renames the columns.

        Args:
            statuses (`Sequence[str]`, *optional*, defaults to `("corrected", "unchanged")`):
                Which records.

        Returns:
            [`~datasets.Dataset`]: Columns `prompt`, `response`, `correction`, the dataset's further columns, and
            `teacher`, `status`, `key`.

        Raises:
            BadInput: If there are no such records, or a column holds values of different types.
        """
        records = [record for record in self if record.status in statuses]
        if not records:
            raise BadInput(f"The store {self.path} holds no records with the status {' or '.join(statuses)}.")
        return to_dataset(records)

    def close(self) -> None:
        """Close the file. Nothing is lost without it."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "CorrectionStore":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # ------------------------------------------------------------------ SQLite

    @contextmanager
    def _transaction(self):
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _sentences(self, done: str):
        """One thread at a time; SQLite's errors as sentences that say what to do."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                raise BadInput(f"The store {self.path} cannot be {done}: {_remedy(error, self.timeout)}") from None


def to_dataset(records: Sequence[Correction]) -> "Dataset":
    """
    Records as stored pairs: columns `prompt`, `response`, `correction`, the dataset's further columns (`None` where a
    record has none), `teacher`, `status`, `key`.

    Args:
        records (`Sequence[Correction]`):
            Records with a correction.

    Raises:
        BadInput: If a column holds values of different types.
    """
    from datasets import Dataset  # slow to import, and a store has to open at once

    own, origin = ("prompt", "response", "correction"), ("teacher", "status", "key")
    names = dict.fromkeys(name for record in records for name in record.columns)
    columns = {name: [getattr(record, name) for record in records] for name in own}
    columns |= {
        name: [record.columns.get(name) for record in records] for name in names if name not in (*own, *origin)
    }
    columns |= {name: [getattr(record, name) for record in records] for name in origin}
    for name, values in columns.items():
        try:
            Dataset.from_dict({name: values})
        except Exception as error:  # pyarrow has many
            raise BadInput(
                f"The column {name!r} of the corrections holds values of different types ({error})."
            ) from None
    return Dataset.from_dict(columns)


def _remedy(error: Exception, timeout: float) -> str:
    message = str(error)
    if "full" in message or "disk I/O" in message:
        return f"the disk is full or fails ({message}). What was stored is intact; make room and start again."
    if "locked" in message or "busy" in message:
        return (
            f"another process has kept it locked for {timeout:g} seconds. What was stored is intact; end that process "
            "(an SQLite browser with an open change, for example) and start again."
        )
    if "readonly" in message or "unable to open" in message:
        return f"no permission to write the file or its folder ({message})."
    if "malformed" in message or "not a database" in message:
        return (
            f"the file is damaged or no store ({message}). What is intact is copied by `python -m "
            "correction_trl.teachers.store rescue DAMAGED NEW.sqlite`; go on with the new file."
        )
    return f"{message}. What was stored is intact."


def rescue(damaged: str | os.PathLike, new: str | os.PathLike) -> tuple[int, int]:
    """
    Copy the intact corrections of a damaged store to a new one. The damaged file is left as it is.

    Args:
        damaged (`str` or `Path`):
            The damaged file.
        new (`str` or `Path`):
            The new one; must not exist.

    Returns:
        `tuple[int, int]`: Number of corrections copied, and of rows that were given up.

    Raises:
        BadInput: If there is no damaged file, or the new one exists.
    """
    if not Path(damaged).is_file():
        raise BadInput(f"There is no file {damaged}.")
    if Path(new).exists():
        raise BadInput(f"{new} exists already; name a new file.")
    connection = sqlite3.connect(damaged)
    copied = lost = 0
    try:
        with CorrectionStore(new) as store:
            for row in _salvaged_rows(connection):
                if row is not None and _checksum(row[:-1]) == row[-1]:
                    copied += store.add([_from_row(row)])
                else:
                    lost += 1
    finally:
        connection.close()
    return copied, lost


def _salvaged_rows(connection: sqlite3.Connection) -> Iterator[tuple | None]:
    """Row by row, from both ends: one unreadable page must not cost what lies before and behind it."""
    seen = set()
    for order, bound in (("ASC", "row > ?"), ("DESC", "row < ?")):
        last, broken = (-1 if order == "ASC" else 2**62), False
        while not broken:
            try:
                row = connection.execute(
                    f"{_SELECT.replace('SELECT', 'SELECT row,', 1)} WHERE {bound} ORDER BY row {order} LIMIT 1",
                    (last,),
                ).fetchone()
            except sqlite3.Error:
                broken = True
                continue
            if row is None or row[0] in seen:
                return
            last = row[0]
            seen.add(last)
            yield row[1:]
    yield None  # what lies between the two ends


def _examine(connection: sqlite3.Connection) -> tuple[str, int, int]:
    """What SQLite says of the structure, and how many rows have, and have not, the contents that were written."""
    intact = damaged = 0
    try:
        structure = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        for row in connection.execute(_SELECT):
            if _checksum(row[:-1]) == row[-1]:
                intact += 1
            else:
                damaged += 1
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise BadInput(f"The store cannot be read: {error}.") from None
        structure = str(error)
    return structure.replace("\n", " "), intact, damaged


def _to_row(record: Correction) -> tuple:
    values = vars(record)
    row = tuple(_to_json(values[name]) if name in _JSON_FIELDS else values[name] for name in _FIELDS)
    try:
        return (*row, _checksum(row))
    except UnicodeEncodeError as error:
        raise BadInput(
            f"A record holds text that is no valid Unicode (half a character): {error.object[:200]!r}."
        ) from None


def _from_row(row: tuple) -> Correction:
    values = dict(zip(_FIELDS, row[:-1], strict=True))
    return Correction(**{name: json.loads(value) if name in _JSON_FIELDS else value for name, value in values.items()})


def _checksum(row: Sequence[Any]) -> str:
    text = "\x1f".join(value if isinstance(value, str) else repr(value) for value in row)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    except TypeError as error:
        raise BadInput(
            f"A row cannot be stored ({error}): prompts and columns must be text, numbers, lists and dicts. Remove "
            f"the column with `dataset.remove_columns`; the row begins {str(value)[:200]}"
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, date | dtime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _this_process() -> tuple[str, int, float]:
    return socket.gethostname(), os.getpid(), psutil.Process().create_time()


def _is_alive(host: str, pid: int, started: float) -> bool:
    """Whether the process of a claim runs; of one on another machine only the claim's time limit is known."""
    if host != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.Error:
        return False


def main(argv: Sequence[str]) -> None:
    if len(argv) != 3 or argv[0] != "rescue":
        raise SystemExit("Usage: python -m correction_trl.teachers.store rescue DAMAGED.sqlite NEW.sqlite")
    try:
        copied, lost = rescue(argv[1], argv[2])
    except BadInput as error:
        raise SystemExit(f"Error: {error}") from None
    print(f"{copied} corrections were copied to {argv[2]}; {lost or 'no'} damaged place{'s' * (lost != 1)} left out.")


if __name__ == "__main__":
    main(sys.argv[1:])
