"""The embedded default: a small task with exact answers and a tiny chat model that makes real mistakes on it.

Additions of two 12-digit numbers, written most significant digit first, so that carries have to be foreseen. Both are
built by `data/build.py`; see the cards in `data/`. Here is where they lie, and what a teacher, a value function and a
feedback function for the task are.
"""

from pathlib import Path
from typing import Any

from .functions import Prompt


__all__ = [
    "embedded_path",
    "exact_match",
    "marked_digits",
    "one_digit_teacher",
    "right_answer_teacher",
    "right_digits",
]


def embedded_path(name: str) -> str:
    """
    Folder of an embedded dataset or model.

    Args:
        name (`str`):
            `"carry_addition"` (dataset) or `"tiny-carry-chat"` (model).

    Raises:
        FileNotFoundError: If it is neither in the installed package nor in the clone around it.
    """
    package = Path(__file__).parent
    for folder in (package / "data" / name, package.parent / "data" / name):
        if folder.is_dir():
            return str(folder)
    raise FileNotFoundError(
        f"The embedded {name!r} was not found in {package / 'data'} or {package.parent / 'data'}; install from a "
        "clone, or rebuild it with `python data/build.py`."
    )


def right_answer_teacher(prompts: list[Prompt], responses: list[str], answer: list[str], **columns: Any) -> list[str]:
    """A teacher that makes the fewest edits which leave no digit wrong. Answers are unique and of one length, so the
    result is the right answer; only the wrong digits of the response are touched."""
    return list(answer)


def one_digit_teacher(prompts: list[Prompt], responses: list[str], answer: list[str], **columns: Any) -> list[str]:
    """A teacher that corrects one mistake at a time: the wrong digit of lowest order. A response of another length
    than the answer is replaced by the answer."""
    corrections = []
    for response, right in zip(responses, answer, strict=True):
        correction = right
        if len(response) == len(right):
            wrong = [i for i, (a, b) in enumerate(zip(response, right, strict=True)) if a != b]
            correction = response if not wrong else response[: wrong[-1]] + right[wrong[-1] :]
        corrections.append(correction)
    return corrections


def exact_match(completions: list, answer: list[str], **columns: Any) -> list[float]:
    """Value function: 1 if the completion is the right answer, else 0."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(text.strip() == right) for text, right in zip(texts, answer, strict=True)]


def right_digits(completions: list, answer: list[str], **columns: Any) -> list[float]:
    """Value function: the share of the answer's digits that stand in their place, so that a response can be better
    than another one without being right. 1 is the right answer and nothing else."""
    values = []
    for completion, right in zip(completions, answer, strict=True):
        text = (completion if isinstance(completion, str) else completion[-1]["content"]).strip()
        n_right = sum(a == b for a, b in zip(text, right, strict=False))
        values.append(n_right / max(len(text), len(right)))
    return values


def marked_digits(completions: list, answer: list[str], **columns: Any) -> list[str]:
    """Feedback function: which digits of the response are wrong, as a line with a question mark below each of them and
    a dash below the others. It knows the answer, and does not tell it.

    With its full stop it has as many tokens as the message that it takes the place of ("There might be an error in the
    answer above. Please correct it."): the tiny model finds the digits of the response by their distance, and would
    have to learn that anew."""
    texts = []
    for completion, right in zip(completions, answer, strict=True):
        text = (completion if isinstance(completion, str) else completion[-1]["content"]).strip()
        if len(text) != len(right):
            text = " " * len(right)  # no digit stands in its place
        texts.append("".join("-" if digit == one else "?" for digit, one in zip(text, right, strict=True)) + ".")
    return texts
