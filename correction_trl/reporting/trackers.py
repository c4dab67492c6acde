"""What trackers (trackio, W&B, TensorBoard) get beside the numbers that transformers sends them: tables of corrections
with their edits, pictures at the end of the run, and a link from the card to the run's page."""

import atexit
import functools
import importlib.util
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from transformers import Trainer
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl.trainer.utils import get_trackio_space_url

from ..errors import BadInput, first_line
from .edits import example_row
from .privacy import is_secret_name, redact_secrets


logger = logging.getLogger(__name__)

# Tracker -> the module that it is, and its name for a reader
_KNOWN = {
    TrackioCallback: ("trackio", "trackio"),
    WandbCallback: ("wandb", "Weights & Biases"),
    TensorBoardCallback: ("tensorboard", "TensorBoard"),
}


def check_trackers(report_to: Sequence[str], model_init_kwargs: Mapping[str, Any] | None = None) -> None:
    """
    See that the trackers of a run are there, before anything expensive.

    Args:
        report_to (`list[str]`):
            Of the training arguments.
        model_init_kwargs (`dict`, *optional*):
            Likewise. transformers sends them to every tracker as they are.

    Raises:
        BadInput: If one is unknown, or not installed, or would get a token.
    """
    secret = next((name for name in model_init_kwargs or () if is_secret_name(name)), None)
    if report_to and secret is not None:
        raise BadInput(
            f"`model_init_kwargs` holds a `{secret}`, and transformers would send it to {', '.join(report_to)}; log "
            "in with `hf auth login` instead."
        )
    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise BadInput(
                f"`report_to: {name}` is no tracker that transformers knows; it knows "
                f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}, 'all' and 'none'."
            )
        package = _KNOWN.get(INTEGRATION_TO_CALLBACK[name], (None,))[0]
        if package is not None and importlib.util.find_spec(package) is None:
            raise BadInput(
                f"`report_to: {name}` needs the package {package}: pip install {package}. `report_to: none` does "
                "without."
            )


class Tracker:
    """
    One of the trackers that transformers has as callbacks, in its place among a trainer's callbacks. What goes wrong
    in it after its start costs its records and not the run.

    Args:
        callback ([`~transformers.TrainerCallback`]):
            transformers' own, such as [`~transformers.integrations.TrackioCallback`].
        keep_open (`bool`, *optional*, defaults to `False`):
            Whether its run goes on after the training, until [`end`] is called or the process ends.
        examples (`Sequence[dict]`, *optional*):
            Examples for the table `corrections/before`, logged when the training begins.
    """

    def __init__(self, callback: Any, keep_open: bool = False, examples: Sequence[Mapping[str, Any]] = ()):
        self.callback, self.keep_open, self.examples = callback, keep_open, examples
        self._broken, self._end = False, None
        known = (name for kind, (_, name) in _KNOWN.items() if isinstance(callback, kind))
        self.name = next(known, type(callback).__name__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "callback" not in vars(self):
            raise AttributeError(name)
        found = getattr(self.callback, name)
        return functools.partial(self._on_event, name, found) if name.startswith("on_") else found

    def _on_event(self, name: str, event: Any, *args, **kwargs) -> Any:
        if name == "on_train_begin":
            return self._begin(event, *args, **kwargs)
        if name == "on_train_end" and self.keep_open:
            self._end = functools.partial(event, *args, **kwargs)
            atexit.register(self.end)  # a run that fails after its training leaves what was tracked
            return None
        return self._guarded(event, *args, **kwargs)

    def _begin(self, event: Any, args, state, control, **kwargs) -> Any:
        try:
            control = event(args, state, control, **kwargs)
        except Exception as error:  # asked for, and nothing is lost yet
            raise BadInput(
                f"{self.name} could not be started ({redact_secrets(first_line(error))}). Log in or go "
                "offline as its documentation says, or leave it out of `report_to`."
            ) from error
        if state.is_world_process_zero:
            self.log_examples("corrections/before", self.examples, state.global_step)
        return control

    def _guarded(self, call: Any, *args, **kwargs) -> Any:
        if self._broken:
            return None
        try:
            return call(*args, **kwargs)
        except Exception as error:
            self._broken = True
            logger.warning(
                f"{self.name} failed and gets nothing more of this run, which goes on "
                f"({type(error).__name__}: {redact_secrets(first_line(error)).rstrip('.')})."
            )
            return None

    def end(self) -> None:
        """End the run in the tracker, if the training has ended and it was kept open."""
        end, self._end = self._end, None
        if end is not None:
            atexit.unregister(self.end)
            self._guarded(end)

    def log_examples(self, name: str, examples: Sequence[Mapping[str, Any]], step: int) -> None:
        """A table of prompt, response, correction and edits; see [`log_examples`]."""
        if examples:
            self._guarded(self._log_examples, name, [{"step": step, **example_row(e)} for e in examples], step)

    def _log_examples(self, name: str, rows: list[dict[str, Any]], step: int) -> None:
        if isinstance(self.callback, TrackioCallback):
            import trackio

            trackio.log({name: trackio.Table(dataframe=pd.DataFrame(rows)), "train/global_step": step})
        elif isinstance(self.callback, WandbCallback):
            import wandb

            wandb.run.log({name: wandb.Table(dataframe=pd.DataFrame(rows)), "train/global_step": step})
        elif isinstance(self.callback, TensorBoardCallback):
            self._writer().add_text(name, _markdown_table(rows), step)
            self._writer().flush()

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """A PNG file."""
        self._guarded(self._log_picture, name, path, step)

    def _log_picture(self, name: str, path: Path, step: int) -> None:
        if isinstance(self.callback, TrackioCallback):
            import trackio

            trackio.log({name: trackio.Image(str(path)), "train/global_step": step})
        elif isinstance(self.callback, WandbCallback):
            import wandb

            wandb.run.log({name: wandb.Image(str(path)), "train/global_step": step})
        elif isinstance(self.callback, TensorBoardCallback):
            import numpy as np
            from PIL import Image

            with Image.open(path) as picture:
                self._writer().add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
            self._writer().flush()

    def _writer(self) -> Any:
        if self.callback.tb_writer is None:
            raise RuntimeError("its run is closed")
        return self.callback.tb_writer

    def page(self) -> tuple[str, str] | None:
        """The tracker's name and the address of the run's page, where there is one that others can open."""
        url = self._guarded(self._url)
        # Without its query a page of W&B is the same; an anonymous one has the key to it there
        return None if url is None else (self.name, quote(url, safe=":/?&=%#"))

    def _url(self) -> str | None:
        if isinstance(self.callback, TrackioCallback):
            return get_trackio_space_url()
        if isinstance(self.callback, WandbCallback):
            import wandb

            run = wandb.run
            return None if run is None or run.offline or not run.url else run.url.partition("?")[0]
        return None


def guard_trackers(trainer: Trainer, keep_open: bool, examples: Sequence[Mapping[str, Any]] = ()) -> None:
    """
    Put a [`Tracker`] around each tracker among a trainer's callbacks.

    Args:
        trainer ([`~transformers.Trainer`]):
            Changed in place.
        keep_open (`bool`), examples (`Sequence[dict]`, *optional*):
            See [`Tracker`].
    """
    kinds = tuple(INTEGRATION_TO_CALLBACK[name] for name in trainer.args.report_to or ())
    callbacks = trainer.callback_handler.callbacks
    callbacks[:] = [Tracker(c, keep_open, examples) if isinstance(c, kinds) else c for c in callbacks]


def trackers_of(trainer: Trainer) -> list[Tracker]:
    """
    The trackers of a trainer that can take tables; none on any process but the first.

    Args:
        trainer ([`~transformers.Trainer`]):
            With or without [`guard_trackers`].
    """
    if not trainer.is_world_process_zero():
        return []
    callbacks = trainer.callback_handler.callbacks
    trackers = [c if isinstance(c, Tracker) else Tracker(c) for c in callbacks if isinstance(c, (Tracker, *_KNOWN))]
    return [tracker for tracker in trackers if isinstance(tracker.callback, tuple(_KNOWN))]


def log_examples(trainer: Trainer, name: str, examples: Sequence[Mapping[str, Any]]) -> None:
    """
    Send a table of corrections to the trackers of a run: `step`, `prompt`, `response`, `correction` as text, and
    `edits`, both in one, as `git diff --word-diff` writes it: `[-removed-]{+put in+}`. Secrets are redacted.

    Args:
        trainer ([`~transformers.Trainer`]):
            Whose run it is; nothing happens if its `report_to` is empty.
        name (`str`):
            Name of the table.
        examples (`Sequence[dict]`):
            `{"prompt", "response", "correction"}`, plain text or conversational; a `correction` of `None` means that
            there is none.
    """
    for tracker in trackers_of(trainer):
        tracker.log_examples(name, examples, trainer.state.global_step)


def log_report(trainer: Trainer, examples: Sequence[Mapping[str, Any]], output_dir: Path) -> None:
    """
    Send the table `corrections/after` and the pictures of a finished run, and end it in the trackers.

    Args:
        trainer ([`~transformers.Trainer`]):
            Whose run it is.
        examples (`Sequence[dict]`):
            From the evaluation after training.
        output_dir (`Path`):
            With the pictures, as [`write_report`] leaves them.
    """
    log_examples(trainer, "corrections/after", examples)
    for tracker in trackers_of(trainer):
        for path in sorted(Path(output_dir).glob("*.png")):
            tracker.log_picture(f"pictures/{path.stem}", path, trainer.state.global_step)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Tracker):
            callback.end()


def run_pages(trainer: Trainer) -> dict[str, str]:
    """
    The pages of a run that others can open, by the tracker's name. A run that is tracked on this machine alone has
    none.

    Args:
        trainer ([`~transformers.Trainer`]):
            Whose run it is.
    """
    return dict(page for tracker in trackers_of(trainer) if (page := tracker.page()) is not None)


def _markdown_table(rows: list[dict[str, Any]]) -> str:
    """As TensorBoard renders it. Punctuation is written as entities, so that no text is taken for markup."""

    def cell(value: Any) -> str:
        text = re.sub(r"[^\w\s]", lambda match: f"&#{ord(match[0])};", str(value))
        return text.replace("_", "&#95;").replace("\n", "<br>")

    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([cell(row[column]) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
