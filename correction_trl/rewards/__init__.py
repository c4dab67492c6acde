"""
Value functions (TRL's `reward_funcs` signature: `f(completions, **columns) -> list[float | None]`) and feedback
functions (the same inputs, one text per completion). `docs/rewards.md` shows each at work.

Each class is a value function; its method `feedback` is the feedback function that goes with it. Each module also has
ready ones under lower-case names, for settings that name a function:
`correction_trl.rewards.final_answer:gsm8k_accuracy`.
"""

from typing import TYPE_CHECKING

from ..faces import lazy_face


# Public name -> module. Loaded on first use: each module needs another library.
_PUBLIC = {
    "CodeTests": "code_tests",
    "ConceptCoverage": "constraints",
    "FinalAnswer": "final_answer",
    "FormatTerm": "composition",
    "Gate": "composition",
    "LengthTerm": "composition",
    "MathProgram": "math_program",
    "NonToxicity": "toxicity",
    "SlotCoverage": "constraints",
    "WeightedSum": "composition",
    "WordListNonToxicity": "toxicity",
    "answers_equal": "math_equality",
    "bag_similarity": "similarity",
    "boxed_answer": "answer_extraction",
    "edit_similarity": "similarity",
    "extract_code": "code_extraction",
    "find_answer": "answer_extraction",
    "gsm8k_answer": "answer_extraction",
    "line_similarity": "similarity",
    "word_similarity": "similarity",
}

__all__ = [*_PUBLIC]

__getattr__, __dir__ = lazy_face(__name__, _PUBLIC)

if TYPE_CHECKING:
    from .answer_extraction import boxed_answer, find_answer, gsm8k_answer  # noqa: F401
    from .code_extraction import extract_code  # noqa: F401
    from .code_tests import CodeTests  # noqa: F401
    from .composition import FormatTerm, Gate, LengthTerm, WeightedSum  # noqa: F401
    from .constraints import ConceptCoverage, SlotCoverage  # noqa: F401
    from .final_answer import FinalAnswer  # noqa: F401
    from .math_equality import answers_equal  # noqa: F401
    from .math_program import MathProgram  # noqa: F401
    from .similarity import bag_similarity, edit_similarity, line_similarity, word_similarity  # noqa: F401
    from .toxicity import NonToxicity, WordListNonToxicity  # noqa: F401
