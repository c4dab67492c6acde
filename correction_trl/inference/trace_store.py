"""Finished traces on disk, so that an evaluation that was killed goes on where it stopped."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .strategy import Trace


class TraceStore:
    """
    The traces of an evaluation, one line of JSON each, appended as they end.

    Each process appends to a file of its own and reads those of all, so that a run may go on with another number of
    processes. A killed process loses the line that it was writing and no other. What was judged meanwhile (see
    [`~evaluation.evaluate_traces`]) is written with its verdicts when the store is closed.

    Args:
        folder (`str` or `os.PathLike`):
            Where the files `traces-0.jsonl`, `traces-1.jsonl`, ... are.
        process_index (`int`, *optional*, defaults to `0`):
            This process.

    Raises:
        BadInput: If a line that was finished cannot be read, or the folder cannot be written to.

    Example:

    ```python
    with TraceStore("outputs/evaluation") as store:
        store.add(key, trace)
    ```
    """

    def __init__(self, folder: str | os.PathLike, process_index: int = 0):
        folder = Path(folder)
        self._traces: dict[str, Trace] = {}
        self._verdicts: dict[str, list] = {}  # as they are on disk
        self._own: set[str] = set()
        self._path = folder / f"traces-{process_index}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("traces-*.jsonl")):
                finished = self._read(path)
                if path == self._path:
                    os.truncate(path, finished)
            self._file = open(self._path, "a", encoding="utf-8")
        except OSError as error:
            raise BadInput(f"The traces in {folder} cannot be read and written: {error.strerror}.") from None

    def _read(self, path: Path) -> int:
        """Takes in a file; returns how many of its bytes are finished lines."""
        content = path.read_bytes()
        finished = content.rfind(b"\n") + 1  # what follows was being written when a process was killed
        for number, line in enumerate(content[:finished].splitlines(), start=1):
            try:
                trace = json.loads(line)
                key = trace.pop("key")
                self._traces[key] = Trace(**trace)
                self._verdicts[key] = list(self._traces[key].right)
                if path == self._path:
                    self._own.add(key)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BadInput(
                    f"{path}, line {number}, is no trace; remove the line, and the problem is solved again."
                ) from None
        return finished

    def __len__(self) -> int:
        return len(self._traces)

    def get(self, key: str) -> Trace | None:
        """The trace of that key, if it is there."""
        return self._traces.get(key)

    def add(self, key: str, trace: Trace) -> None:
        """Keeps a trace; it is in the file when this returns."""
        self._file.write(self._line(key, trace))
        self._file.flush()
        self._traces[key], self._verdicts[key] = trace, list(trace.right)
        self._own.add(key)

    def _line(self, key: str, trace: Trace) -> str:
        # Models write half surrogate pairs now and then; as an escape, they can be stored
        return json.dumps({"key": key, **trace.to_dict()}, default=str) + "\n"

    def close(self) -> None:
        """Writes the verdicts that came after their traces."""
        self._file.close()
        judged = {key for key, trace in self._traces.items() if trace.right != self._verdicts[key]}
        if judged:
            unfinished = self._path.with_suffix(".tmp")
            with open(unfinished, "w", encoding="utf-8") as file:
                file.writelines(
                    self._line(key, self._traces[key]) for key in self._traces if key in self._own | judged
                )
            os.replace(unfinished, self._path)

    def __enter__(self) -> "TraceStore":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def trace_key(**depends_on: Any) -> str:
    """
    The key of a trace: a hash of everything that it depends on (model, strategy and settings, problem, sampling).

    Args:
        **depends_on:
            Anything that JSON can hold.
    """
    text = json.dumps(depends_on, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def model_version(name: str, revision: str | None = None) -> dict[str, Any]:
    """
    What tells a model from another one of the same name: for a folder its weights' files, for a Hub id the revision.

    Args:
        name (`str`):
            Folder or Hub id.
        revision (`str`, *optional*):
            Of a Hub id.
    """
    folder = Path(name)
    if not folder.is_dir():
        return {"name": name, "revision": revision}
    files = [path for pattern in ("*.safetensors", "*.json") for path in folder.glob(pattern)]
    files = [path for path in files if path.name != "metrics.json"]
    return {
        "name": folder.resolve().name,
        "files": sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files),
    }
