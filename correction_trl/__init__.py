"""Trainers that teach language models to correct themselves, on top of TRL."""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0"

# Public name -> module. Loaded on first use, so that `import correction_trl` (and every `--help`) stays fast.
_MODULES = {
    "CorrectionOptimizationConfig": "correction_optimization.correction_optimization_config",
    "CorrectionOptimizationTrainer": "correction_optimization.correction_optimization_trainer",
    "CorrectorSFTConfig": "corrector_sft.corrector_sft_config",
    "CorrectorSFTTrainer": "corrector_sft.corrector_sft_trainer",
    "SCoReConfig": "score.score_config",
    "SCoReTrainer": "score.score_trainer",
}

__all__ = [
    "CorrectionOptimizationConfig",
    "CorrectionOptimizationTrainer",
    "CorrectorSFTConfig",
    "CorrectorSFTTrainer",
    "SCoReConfig",
    "SCoReTrainer",
    "__version__",
]

if TYPE_CHECKING:
    from .correction_optimization.correction_optimization_config import CorrectionOptimizationConfig
    from .correction_optimization.correction_optimization_trainer import CorrectionOptimizationTrainer
    from .corrector_sft.corrector_sft_config import CorrectorSFTConfig
    from .corrector_sft.corrector_sft_trainer import CorrectorSFTTrainer
    from .score.score_config import SCoReConfig
    from .score.score_trainer import SCoReTrainer


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__():
    return sorted(__all__)
