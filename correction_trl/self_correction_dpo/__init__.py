"""Self-Correction Learning: preference pairs of a model's own two answers, round by round."""

from importlib import import_module
from typing import TYPE_CHECKING


# Public name -> module. Loaded on first use: all of it needs torch.
_PUBLIC = {
    "SelfCorrectionDPOTrainer": "rounds",
    "evaluate_transcripts": "pairs",
    "make_pairs": "pairs",
    "sample_transcripts": "pairs",
    "train_rounds": "rounds",
}

__all__ = [*_PUBLIC]

if TYPE_CHECKING:
    from .pairs import evaluate_transcripts, make_pairs, sample_transcripts  # noqa: F401
    from .rounds import SelfCorrectionDPOTrainer, train_rounds  # noqa: F401


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__():
    return sorted(__all__)
