"""Self-Correction Learning: preference pairs of a model's own two answers, round by round."""

from typing import TYPE_CHECKING

from ..faces import lazy_face


# Public name -> module. Loaded on first use: all of it needs torch.
_PUBLIC = {
    "SelfCorrectionDPOTrainer": "rounds",
    "evaluate_transcripts": "pairs",
    "make_pairs": "pairs",
    "sample_transcripts": "pairs",
    "train_rounds": "rounds",
}

__all__ = [*_PUBLIC]

__getattr__, __dir__ = lazy_face(__name__, _PUBLIC)

if TYPE_CHECKING:
    from .pairs import evaluate_transcripts, make_pairs, sample_transcripts  # noqa: F401
    from .rounds import SelfCorrectionDPOTrainer, train_rounds  # noqa: F401
