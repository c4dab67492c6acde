"""Trainers that teach language models to correct themselves, on top of TRL."""

from typing import TYPE_CHECKING

from .faces import lazy_face


__version__ = "0.1.0"

# Public name -> module. Loaded on first use, so that `import correction_trl` (and every `--help`) stays fast.
_PUBLIC = {
    "CorrectionOptimizationConfig": "correction_optimization.correction_optimization_config",
    "CorrectionOptimizationTrainer": "correction_optimization.correction_optimization_trainer",
    "CorrectorSFTConfig": "corrector_sft.corrector_sft_config",
    "CorrectorSFTTrainer": "corrector_sft.corrector_sft_trainer",
    "SCoReConfig": "score.score_config",
    "SCoReTrainer": "score.score_trainer",
}

__all__ = [*_PUBLIC, "__version__"]

__getattr__, __dir__ = lazy_face(__name__, _PUBLIC)

if TYPE_CHECKING:
    from .correction_optimization.correction_optimization_config import CorrectionOptimizationConfig  # noqa: F401
    from .correction_optimization.correction_optimization_trainer import CorrectionOptimizationTrainer  # noqa: F401
    from .corrector_sft.corrector_sft_config import CorrectorSFTConfig  # noqa: F401
    from .corrector_sft.corrector_sft_trainer import CorrectorSFTTrainer  # noqa: F401
    from .score.score_config import SCoReConfig  # noqa: F401
    from .score.score_trainer import SCoReTrainer  # noqa: F401
