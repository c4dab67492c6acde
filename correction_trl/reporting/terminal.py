"""What a run shows while it trains: the few numbers that matter, instead of all that is logged."""

import atexit
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, ProgressCallback, Trainer
from trl import RichProgressCallback

from ..data_utils import message_text


# Logged key -> what a reader calls it. With `eval_` in front they are the evaluation's.
CORRECTION_OPTIMIZATION_NUMBERS = {
    "loss": "loss",
    "logps/correction": "logps/correction",
    "margins/accuracy": "margins/accuracy",
    "correction_edit_ratio": "edit ratio",
    "corrections/unchanged": "unchanged",
}
SCORE_NUMBERS = {
    "acc@t1": "acc@t1",
    "acc@t2": "acc@t2",
    "delta(i->c)": "delta(i->c)",
    "answer_changed": "answer changed",
    "kl/t2": "kl/t2",
}
CORRECTOR_SFT_NUMBERS = {
    "loss": "loss",
    "pool/size": "pool",
    "pairs/value_gain": "gain in pairs",
    "exploration/improved": "improved",
    "exploration/value_gain": "gain sampled",
}


class ReadableProgress(RichProgressCallback):
    """
    TRL's rich progress with a few numbers of a method; one line a log where the output is a file. Everything that is
    logged still goes to `trainer.state.log_history` and to the trackers.

    Args:
        numbers (`Mapping[str, str]`):
            Logged key to shown name, in the order in which they are shown.
        log_format (`str`, *optional*, defaults to `"auto"`):
            `"rich"`, `"plain"`, or `"auto"`: rich on a terminal, plain elsewhere.
    """

    def __init__(self, numbers: Mapping[str, str], log_format: Literal["auto", "rich", "plain"] = "auto"):
        super().__init__()
        self._numbers = dict(numbers)
        self._plain = log_format == "plain" or (log_format == "auto" and not sys.stdout.isatty())

    def on_train_begin(self, args, state, control, **kwargs):
        if self._plain or not state.is_world_process_zero:
            return
        super().on_train_begin(args, state, control, **kwargs)
        atexit.register(self._stop)  # a run that fails leaves the terminal as it was, with its cursor

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.training_bar is not None:  # TRL's has no bar for an evaluation outside of training
            super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        shown = self._shown(logs)
        if not shown:
            return
        if self._plain:
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            print(f"step {state.global_step}/{state.max_steps}  {numbers}", flush=True)
        else:
            one_table = {name.replace("/", " "): value for name, value in shown.items()}  # TRL's has one per prefix
            super().on_log(args, state, control, logs=one_table, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)
            atexit.unregister(self._stop)

    def _stop(self) -> None:
        if self.rich_group is not None:
            self.rich_group.stop()

    def _shown(self, logs: Mapping[str, float]) -> dict[str, float]:
        named = self._numbers | {f"eval_{key}": f"evaluation: {name}" for key, name in self._numbers.items()}
        return {name: logs[key] for key, name in named.items() if isinstance(logs.get(key), int | float)}


def print_examples(examples: Sequence[Mapping[str, Any]], step: int) -> None:
    """
    A table of prompts, responses and corrections, of each its end.

    Args:
        examples (`Sequence[dict]`):
            `{"prompt", "response", "correction"}`; a `correction` of `None` means that there is none.
        step (`int`):
            Number of the update.
    """
    table = Table("prompt", "response", "correction", title=f"Step {step}", show_lines=True)
    for example in examples:
        response, correction = example["response"], example["correction"]
        shown = "(unchanged)" if correction == response else "(none)" if correction is None else correction
        texts = (message_text(example["prompt"]), response, shown)
        table.add_row(*(str(text)[-400:].replace("[", r"\[") for text in texts))
    Console().print(table)


def show_readable_progress(trainer: Trainer) -> None:
    """
    Take out transformers' own progress bar and printed dicts, where a [`ReadableProgress`] is among the callbacks.

    Args:
        trainer ([`~transformers.Trainer`]):
            Changed in place.
    """
    if any(isinstance(callback, ReadableProgress) for callback in trainer.callback_handler.callbacks):
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
