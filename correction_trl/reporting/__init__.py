"""What a run leaves behind for its reader: numbers, pictures and cards."""

from typing import TYPE_CHECKING

from ..faces import lazy_face


# Public name -> module. Loaded on first use: drawing needs matplotlib.
_PUBLIC = {
    "CORRECTION_OPTIMIZATION_NUMBERS": "terminal",
    "CORRECTION_OPTIMIZATION_PANELS": "plots",
    "CORRECTOR_SFT_NUMBERS": "terminal",
    "CORRECTOR_SFT_PANELS": "plots",
    "SCORE_NUMBERS": "terminal",
    "SCORE_PANELS": "plots",
    "ReadableProgress": "terminal",
    "check_trackers": "trackers",
    "command_line": "privacy",
    "drift_warning": "run_metrics",
    "example_row": "edits",
    "examples_markdown": "edits",
    "guard_trackers": "trackers",
    "installed_versions": "run_metrics",
    "log_examples": "trackers",
    "log_report": "trackers",
    "plot_before_after": "plots",
    "plot_edit_distribution": "plots",
    "plot_examples": "edits",
    "plot_learning_curves": "plots",
    "print_summary": "run_metrics",
    "publishable": "privacy",
    "redact_secrets": "privacy",
    "run_pages": "trackers",
    "show_readable_progress": "terminal",
    "write_dataset": "corrections_dataset",
    "write_evaluation": "strategies_report",
    "write_metrics": "run_metrics",
    "write_model_card": "model_card",
    "write_report": "run_report",
}

__all__ = [*_PUBLIC]

__getattr__, __dir__ = lazy_face(__name__, _PUBLIC)

if TYPE_CHECKING:
    from .corrections_dataset import write_dataset  # noqa: F401
    from .edits import example_row, examples_markdown, plot_examples  # noqa: F401
    from .model_card import write_model_card  # noqa: F401
    from .plots import (  # noqa: F401
        CORRECTION_OPTIMIZATION_PANELS,
        CORRECTOR_SFT_PANELS,
        SCORE_PANELS,
        plot_before_after,
        plot_edit_distribution,
        plot_learning_curves,
    )
    from .privacy import command_line, publishable, redact_secrets  # noqa: F401
    from .run_metrics import drift_warning, installed_versions, print_summary, write_metrics  # noqa: F401
    from .run_report import write_report  # noqa: F401
    from .strategies_report import write_evaluation  # noqa: F401
    from .terminal import (  # noqa: F401
        CORRECTION_OPTIMIZATION_NUMBERS,
        CORRECTOR_SFT_NUMBERS,
        SCORE_NUMBERS,
        ReadableProgress,
        show_readable_progress,
    )
    from .trackers import check_trackers, guard_trackers, log_examples, log_report, run_pages  # noqa: F401
