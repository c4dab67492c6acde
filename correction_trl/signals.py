"""How a launched run ends when it is told to: in order, with a checkpoint if that is wanted, and without orphans."""

import ctypes
import os
import signal
import sys

import psutil
import torch
from transformers import TrainerCallback


_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_in_order() -> None:
    """Make SIGTERM what Ctrl-C is, and send it to this process when its launcher ends, however that ends."""
    signal.signal(signal.SIGTERM, _interrupt)
    if not sys.platform.startswith("linux"):
        return
    # Not every parent: a run that was started from a shell may outlive it
    launcher = " ".join(psutil.Process(os.getppid()).cmdline())
    if "accelerate" in launcher or "torchrun" in launcher or "torch.distributed" in launcher:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _interrupt(number, frame):
    raise KeyboardInterrupt(signal.Signals(number).name)


class SaveOnSignal(TrainerCallback):
    """
    At the first SIGTERM or SIGINT the update that is under way is finished, a checkpoint is saved, and training ends
    with a `KeyboardInterrupt`. A second Ctrl-C ends it at once. All processes stop after the same update.
    """

    def __init__(self):
        self._received: str | None = None
        self._before: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._received = None
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number, frame):
        # A launcher passes on what its processes have had from the terminal already: only Ctrl-C counts twice
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is None and int(os.environ.get("RANK", 0)) == 0:
            print(f"{signal.Signals(number).name}: a checkpoint is saved after this update ...", flush=True)
        self._received = self._received or signal.Signals(number).name

    def on_step_end(self, args, state, control, **kwargs):
        stop = torch.tensor(float(self._received is not None), device=args.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(stop, op=torch.distributed.ReduceOp.MAX)
        if stop:
            self._received = self._received or "another process"
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._received is not None:
            raise KeyboardInterrupt(self._received)
