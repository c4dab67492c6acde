"""What a policy, a corrector or a strategy is worth, on problems that it was not trained on."""

from typing import TYPE_CHECKING

from ..faces import lazy_face


# Public name -> module. Loaded on first use: most of it needs torch.
_PUBLIC = {
    "Evaluation": "evaluate",
    "RegressionCheck": "regression",
    "attack_success": "attacks",
    "distinct": "measures",
    "evaluate_attempts": "attempts",
    "evaluate_corrections": "corrections",
    "evaluate_corrector": "corrector",
    "evaluate_regression": "regression",
    "evaluate_traces": "evaluate",
    "fluency_column": "measures",
    "mean_of": "measures",
    "refusal_rates": "attacks",
    "values_of_samples": "measures",
}

__all__ = [*_PUBLIC]

__getattr__, __dir__ = lazy_face(__name__, _PUBLIC)

if TYPE_CHECKING:
    from .attacks import attack_success, refusal_rates  # noqa: F401
    from .attempts import evaluate_attempts  # noqa: F401
    from .corrections import evaluate_corrections  # noqa: F401
    from .corrector import evaluate_corrector  # noqa: F401
    from .evaluate import Evaluation, evaluate_traces  # noqa: F401
    from .measures import distinct, fluency_column, mean_of, values_of_samples  # noqa: F401
    from .regression import RegressionCheck, evaluate_regression  # noqa: F401
