"""Checkpoints that are whole or do not count, and folders that one run owns."""

import contextlib
import errno
import json
import os
import socket
import sqlite3
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from safetensors import SafetensorError

from .errors import BadInput, first_line


LOCK_FILE = ".run.lock"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")
# What sharded training writes in their place
_SHARDED_WEIGHTS = ("global_step*", "pytorch_model_fsdp*", "model_fsdp*")
_SHARDED_OPTIMIZERS = ("global_step*", "optimizer_*", "optimizer.bin")


def checkpoint_problem(folder: Path, side_files: Sequence[str] = (), weights_only: bool = False) -> str | None:
    """
    What a checkpoint lacks to go on from as if nothing had happened.

    Args:
        folder (`Path`):
            The checkpoint.
        side_files (`Sequence[str]`, *optional*):
            Further files that its trainer writes.
        weights_only (`bool`, *optional*, defaults to `False`):
            Whether it was saved with `save_only_model`.

    Returns:
        `str` or `None`: Half a sentence; `None` if it is whole.
    """
    if not folder.is_dir():
        return "there is no such folder"
    for name in ("trainer_state.json", *(name for name in side_files if name.endswith(".json"))):
        if not (folder / name).is_file():
            return f"{name} is missing"
        try:
            json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError:
            return f"{name} is damaged"
    wanted = {} if weights_only else {
        "optimizer.pt": ("optimizer.pt", *_SHARDED_OPTIMIZERS),
        "scheduler.pt": ("scheduler.pt",),
        "rng_state.pth": ("rng_state*.pth",),
    }  # fmt: skip
    wanted |= {name: (name,) for name in side_files}
    if (missing := _missing_weights(folder)) is not None:
        return missing
    for name, patterns in wanted.items():
        if not _any(folder, patterns):
            return f"{name} is missing"
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors" and not _is_whole_safetensors(file):
            return f"{file.name} is damaged"
        # What `torch.save` writes is a zip archive, whose table of contents is its end
        if file.suffix in (".pt", ".pth") and not zipfile.is_zipfile(file):
            return f"{file.name} is damaged"
    return None


def _missing_weights(folder: Path) -> str | None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return None if _any(folder, (*_WEIGHTS, *_SHARDED_WEIGHTS)) else "its weights are missing"
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{index.name} is damaged"
    return next((f"{name} is missing" for name in sorted(shards) if not (folder / name).is_file()), None)


def _any(folder: Path, patterns: Sequence[str]) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _is_whole_safetensors(file: Path) -> bool:
    """Its header says where its last tensor ends."""
    with open(file, "rb") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
        if n_header > file.stat().st_size:
            return False
        try:
            header = json.loads(stream.read(n_header))
            end = max(
                (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return file.stat().st_size == 8 + n_header + end


def whole_checkpoints(output_dir: Path, side_files: Sequence[str] = (), weights_only: bool = False) -> list[Path]:
    """The checkpoints of a run that are whole, the newest last; those of SCL lie in the folders of its rounds."""
    found = [
        (int(path.parent.name.rpartition("_")[2]) if path.parent != output_dir else 0, int(step), path)
        for pattern in ("checkpoint-*", "round_*/checkpoint-*")
        for path in output_dir.glob(pattern)
        if (step := path.name.rpartition("-")[2]).isdigit()
        and (path.parent == output_dir or path.parent.name.rpartition("_")[2].isdigit())
    ]
    found = [path for _, _, path in sorted(found)]
    return [path for path in found if checkpoint_problem(path, side_files, weights_only) is None]


def checkpoint_to_resume_from(
    wanted: str | bool | None, output_dir: Path, side_files: Sequence[str] = (), weights_only: bool = False
) -> str | None:
    """
    The checkpoint that `resume_from_checkpoint` means.

    Args:
        wanted (`str` or `bool`, *optional*):
            A folder; or `True`: the newest whole one in `output_dir`.
        output_dir (`Path`):
            The run's folder.
        side_files, weights_only:
            See [`checkpoint_problem`].

    Raises:
        BadInput: If it is not whole; the message names the missing part and the newest whole checkpoint.
    """
    if wanted is None or wanted is False or str(wanted).lower() == "false":
        return None
    whole = whole_checkpoints(output_dir, side_files, weights_only)
    if wanted is True or str(wanted).lower() == "true":
        if not whole:
            raise BadInput(
                f"`resume_from_checkpoint`: {output_dir} holds no whole checkpoint; leave it out to start anew."
            )
        return str(whole[-1])
    problem = checkpoint_problem(Path(wanted), side_files, weights_only)
    if problem is None:
        return str(wanted)
    offer = f"the newest whole one is {whole[-1]}" if whole else f"there is no whole one in {output_dir}; start anew"
    if problem in ("optimizer.pt is missing", "scheduler.pt is missing", "rng_state.pth is missing"):
        offer += ", or set `save_only_model: true` to go on from its weights alone, with a new optimizer"
    raise BadInput(f"`resume_from_checkpoint={str(wanted)!r}` cannot be resumed from: {problem}; {offer}.")


def full_disk(error: BaseException) -> str | None:
    """
    Why a file could not be written, if it was for want of room: the disk is full, a quota or a limit is reached.

    Args:
        error (`BaseException`):
            From Python, safetensors, torch or SQLite, each of which says it in its own way.

    Returns:
        `str` or `None`: What it says; `None` if it is about anything else.
    """
    if isinstance(error, OSError):
        return error.strerror if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None
    # torch names no reason, but the archive's writer writes and does nothing else
    words = {
        SafetensorError: ("os error 28", "os error 122", "os error 27"),
        sqlite3.OperationalError: ("disk is full", "disk I/O error"),
        RuntimeError: ("PytorchStreamWriter failed writing", "iostream error", "unexpected pos"),
    }
    of_kind = [word for kind, found in words.items() if isinstance(error, kind) for word in found]
    return first_line(error) if any(word in str(error) for word in of_kind) else None


@contextlib.contextmanager
def owned(output_dir: Path) -> Iterator[None]:
    """
    One run owns a folder while it runs. The lock of a process that is no longer there is taken over; within one
    process it can be held several times.

    Raises:
        BadInput: If another process owns it; the message names the process.
    """
    file = output_dir / LOCK_FILE
    output_dir.mkdir(parents=True, exist_ok=True)
    owner = {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}
    while True:
        try:
            # Created under another name and linked, so that a lock is never seen half written
            draft = file.with_name(f"{LOCK_FILE}.{os.getpid()}")
            draft.write_text(json.dumps(owner), encoding="utf-8")
            os.link(draft, file)
            break
        except FileExistsError:
            other = _read_lock(file)
            if other == owner:
                yield
                return
            if other is not None and _is_alive(other):
                raise BadInput(
                    f"`output_dir={str(output_dir)!r}` belongs to a run that is going on (process {other['pid']} on "
                    f"{other['host']}); wait for its end, or give this run another `output_dir`."
                ) from None
            file.unlink(missing_ok=True)  # its process is gone
        except OSError:  # a file system without links: better no lock than no run
            yield
            return
        finally:
            draft.unlink(missing_ok=True)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _read_lock(file: Path) -> dict | None:
    try:
        lock = json.loads(file.read_text(encoding="utf-8"))
        return lock if {"pid", "started", "host"} <= set(lock) else None
    except (OSError, ValueError, TypeError):
        return None


def _is_alive(lock: dict) -> bool:
    """Of another machine it cannot be known: it counts as alive."""
    if lock["host"] != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(lock["pid"]).create_time() - lock["started"]) < 1
    except psutil.NoSuchProcess:
        return False


class CheckpointTrainerMixin:
    """
    A trainer whose checkpoints are whole: what it writes beside `Trainer`'s files is there before the state file that
    makes a folder a checkpoint, and what it resumes from is looked at first. It overrides `train` and
    `_save_checkpoint`, and stands before TRL's trainer in the bases.
    """

    def _side_files(self) -> list[str]:
        """Names of what this trainer writes into a checkpoint, on all processes."""
        return []

    def _write_side_files(self, folder: Path) -> None:
        """Called on each process, with a folder that is there."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        output_dir = Path(self.args.output_dir)
        resume_from_checkpoint = checkpoint_to_resume_from(
            resume_from_checkpoint, output_dir, self._side_files(), self.args.save_only_model
        )
        with owned(output_dir) if self.accelerator.is_main_process else contextlib.nullcontext():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        try:
            if not self.args.save_only_model:
                folder.mkdir(parents=True, exist_ok=True)
                self._write_side_files(folder)
            super()._save_checkpoint(model, trial)
        except Exception as error:
            if (reason := full_disk(error)) is None:
                raise
            whole = whole_checkpoints(folder.parent, self._side_files(), self.args.save_only_model)
            go_on = f"go on from {whole[-1]} with `resume_from_checkpoint`" if whole else "start again"
            raise BadInput(
                f"The checkpoint {folder} could not be written ({reason}): make room on the disk, and {go_on}."
            ) from error
