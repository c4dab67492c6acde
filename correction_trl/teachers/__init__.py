"""Who corrects: a function, a server, a local model, the policy itself, a person, or stored corrections."""

from typing import TYPE_CHECKING

from ..faces import lazy_face


# Public name -> module. Loaded on first use: some of it needs torch, a server's client or Gradio.
_PUBLIC = {
    "Correction": "store",
    "CorrectionStore": "store",
    "FunctionTeacher": "base",
    "HumanCollection": "human",
    "Item": "base",
    "Judgement": "judge",
    "JudgePrompt": "judge",
    "LocalTeacher": "local",
    "PolicyTeacher": "policy",
    "Progress": "collection",
    "ServerJudge": "judge",
    "ServerTeacher": "server",
    "StoredTeacher": "stored",
    "StoringTeacher": "collection",
    "StyleGuide": "style_guide",
    "Teacher": "base",
    "TeacherPrompt": "prompting",
    "ask_people": "human",
    "collect": "collection",
    "correction_key": "store",
    "read_annotations": "annotation_files",
    "write_argilla": "annotation_files",
    "write_jsonl": "annotation_files",
}

__all__ = [*_PUBLIC]

__getattr__, __dir__ = lazy_face(__name__, _PUBLIC)

if TYPE_CHECKING:
    from .annotation_files import read_annotations, write_argilla, write_jsonl  # noqa: F401
    from .base import FunctionTeacher, Item, Teacher  # noqa: F401
    from .collection import Progress, StoringTeacher, collect  # noqa: F401
    from .human import HumanCollection, ask_people  # noqa: F401
    from .judge import Judgement, JudgePrompt, ServerJudge  # noqa: F401
    from .local import LocalTeacher  # noqa: F401
    from .policy import PolicyTeacher  # noqa: F401
    from .prompting import TeacherPrompt  # noqa: F401
    from .server import ServerTeacher  # noqa: F401
    from .store import Correction, CorrectionStore, correction_key  # noqa: F401
    from .stored import StoredTeacher  # noqa: F401
    from .style_guide import StyleGuide  # noqa: F401
