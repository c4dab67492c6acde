"""
Value functions (TRL's `reward_funcs` signature: `f(completions, **columns) -> list[float | None]`) and feedback
functions (the same inputs, one text per completion). `docs/rewards.md` shows each at work.

Each class is a value function; its method `feedback` is the feedback function that goes with it. Under lower-case
names there are ready ones, for settings that name a function: `correction_trl.rewards:gsm8k_accuracy`.
"""

from typing import TYPE_CHECKING

from ..faces import lazy_face


# Public name -> module. Loaded on first use: each module needs another library.
_PUBLIC = {
    "CodeTests": "code_tests",
    "ConceptCoverage": "constraints",
    "FinalAnswer": "final_answer",
    "Fluency": "fluency",
    "FormatTerm": "composition",
    "Gate": "composition",
    "LengthTerm": "composition",
    "MathProgram": "math_program",
    "NonToxicity": "toxicity",
    "ShortAnswer": "short_answers",
    "SlotCoverage": "constraints",
    "WeightedSum": "composition",
    "WordListNonToxicity": "toxicity",
    "answers_equal": "math_equality",
    "bag_similarity": "similarity",
    "boxed_accuracy": "final_answer",
    "boxed_answer": "answer_extraction",
    "choice_accuracy": "final_answer",
    "concept_coverage": "constraints",
    "edit_similarity": "similarity",
    "extract_code": "code_extraction",
    "fallen_attribute": "toxicity",
    "final_answer_accuracy": "final_answer",
    "final_answer_feedback": "final_answer",
    "find_answer": "answer_extraction",
    "gold_answers": "short_answers",
    "gsm8k_accuracy": "final_answer",
    "gsm8k_answer": "answer_extraction",
    "humaneval_feedback": "code_tests",
    "humaneval_tests": "code_tests",
    "last_number_accuracy": "final_answer",
    "line_similarity": "similarity",
    "math_program_accuracy": "math_program",
    "math_program_feedback": "math_program",
    "mbpp_feedback": "code_tests",
    "mbpp_tests": "code_tests",
    "missing_concepts": "constraints",
    "missing_slots": "constraints",
    "non_toxicity": "toxicity",
    "normalize_short_answer": "short_answers",
    "short_answer": "short_answers",
    "short_answer_contains": "short_answers",
    "short_answer_exact": "short_answers",
    "short_answer_f1": "short_answers",
    "slot_coverage": "constraints",
    "strongest_attribute": "toxicity",
    "toxicity_feedback": "toxicity",
    "word_list_feedback": "toxicity",
    "word_list_non_toxicity": "toxicity",
    "word_similarity": "similarity",
}

__all__ = [*_PUBLIC]

__getattr__, __dir__ = lazy_face(__name__, _PUBLIC)

if TYPE_CHECKING:
    from .answer_extraction import boxed_answer, find_answer, gsm8k_answer
    from .code_extraction import extract_code
    from .code_tests import CodeTests, humaneval_feedback, humaneval_tests, mbpp_feedback, mbpp_tests
    from .composition import FormatTerm, Gate, LengthTerm, WeightedSum
    from .constraints import (
        ConceptCoverage,
        SlotCoverage,
        concept_coverage,
        missing_concepts,
        missing_slots,
        slot_coverage,
    )
    from .final_answer import (
        FinalAnswer,
        boxed_accuracy,
        choice_accuracy,
        final_answer_accuracy,
        final_answer_feedback,
        gsm8k_accuracy,
        last_number_accuracy,
    )
    from .fluency import Fluency
    from .math_equality import answers_equal
    from .math_program import MathProgram, math_program_accuracy, math_program_feedback
    from .short_answers import (
        ShortAnswer,
        gold_answers,
        normalize_short_answer,
        short_answer,
        short_answer_contains,
        short_answer_exact,
        short_answer_f1,
    )
    from .similarity import bag_similarity, edit_similarity, line_similarity, word_similarity
    from .toxicity import (
        NonToxicity,
        WordListNonToxicity,
        fallen_attribute,
        non_toxicity,
        strongest_attribute,
        toxicity_feedback,
        word_list_feedback,
        word_list_non_toxicity,
    )
