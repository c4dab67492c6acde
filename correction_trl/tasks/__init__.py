"""
The papers' own tasks, each a small module: a **task pack**.

A pack holds functions that settings name as `module:function`, as they name any other:

* `problems`, for `data_function`: from a split as it is published (a Hub id, or a local file of the same columns) to
  rows with a `prompt` and the columns that the value function reads;
* value and feedback functions, extractors and metrics, its own or those of [`~correction_trl.rewards`] that it uses;
* the paper's instructions, as texts in capital letters.

There is no registry. `docs/tasks.md` has a section for each pack: the config, the command, the paper's table.
"""

from importlib import import_module
from types import ModuleType


# A module each, imported on first use
__all__ = [
    "bbq",
    "code_generation",
    "commongen",
    "commonsense_qa",
    "competition_math",
    "e2e",
    "jailbreaks",
    "math_programs",
    "multiple_choice",
    "open_domain",
    "toxicity",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
