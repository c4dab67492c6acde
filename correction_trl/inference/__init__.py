"""Correction at inference time: strategies that ask a model, local or behind a server, more than once."""

from typing import TYPE_CHECKING

from ..faces import lazy_face


# Public name -> module. Loaded on first use: most of it needs torch.
_PUBLIC = {
    "Chat": "chat",
    "Conversation": "chat",
    "Corrector": "_with_corrector",
    "LocalChat": "chat",
    "Problem": "strategy",
    "ServerChat": "server_chat",
    "Trace": "strategy",
    "TraceStore": "trace_store",
    "ask_whether_right": "_gated_revision",
    "best_of_n": "_controls",
    "checked_dialogues": "_self_checking",
    "correct_iteratively": "iterative",
    "final_answer": "answers",
    "gated_revision": "_gated_revision",
    "intrinsic": "_intrinsic",
    "last_number": "answers",
    "load_dialogues": "_self_checking",
    "load_model": "chat",
    "multiple_choice": "answers",
    "parallel": "_compute_curve",
    "parallel_corrected": "_compute_curve",
    "problems_of": "_solve",
    "proco": "_proco",
    "refusal_demonstrations": "_refusal_baselines",
    "repair": "_repair",
    "resample": "_controls",
    "run": "strategy",
    "samples_agree": "_gated_revision",
    "save_dialogues": "_self_checking",
    "self_checking": "_self_checking",
    "self_checking_backup": "_self_checking",
    "self_consistency": "_controls",
    "self_refine": "_self_refine",
    "self_reminder": "_refusal_baselines",
    "solve": "_solve",
    "verify_by_key_condition": "_proco",
    "whole_text": "answers",
    "with_corrector": "_with_corrector",
    "with_feedback": "_with_feedback",
}

__all__ = [*_PUBLIC]

__getattr__, __dir__ = lazy_face(__name__, _PUBLIC)

if TYPE_CHECKING:
    from ._compute_curve import parallel, parallel_corrected  # noqa: F401
    from ._controls import best_of_n, resample, self_consistency  # noqa: F401
    from ._gated_revision import ask_whether_right, gated_revision, samples_agree  # noqa: F401
    from ._intrinsic import intrinsic  # noqa: F401
    from ._proco import proco, verify_by_key_condition  # noqa: F401
    from ._refusal_baselines import refusal_demonstrations, self_reminder  # noqa: F401
    from ._repair import repair  # noqa: F401
    from ._self_checking import (  # noqa: F401
        checked_dialogues,
        load_dialogues,
        save_dialogues,
        self_checking,
        self_checking_backup,
    )
    from ._self_refine import self_refine  # noqa: F401
    from ._solve import problems_of, solve  # noqa: F401
    from ._with_corrector import Corrector, with_corrector  # noqa: F401
    from ._with_feedback import with_feedback  # noqa: F401
    from .answers import final_answer, last_number, multiple_choice, whole_text  # noqa: F401
    from .chat import Chat, Conversation, LocalChat, load_model  # noqa: F401
    from .iterative import correct_iteratively  # noqa: F401
    from .server_chat import ServerChat  # noqa: F401
    from .strategy import Problem, Trace, run  # noqa: F401
    from .trace_store import TraceStore  # noqa: F401
