"""From the text of a response to the answer that it gives, so that answers can be counted and compared."""

from ..rewards.answer_extraction import find_answer
from ..rewards.answer_writing import tidy
from ..rewards.common import after_thinking
from ..rewards.number_reading import plain_number


def whole_text(response: str) -> str | None:
    """The whole text is the answer; an empty one is none."""
    return response.strip() or None


def final_answer(response: str) -> str | None:
    r"""
    The final answer: `\boxed{...}`, GSM8K's `#### ...`, or "The final answer is $...$".

    Args:
        response (`str`):
            The response; a reasoning model's thoughts do not count.

    Returns:
        `str` or `None`: In one writing for what means the same (18, 18.0, \$18); `None` if there is none.
    """
    answer = find_answer(after_thinking(response)).answer
    return None if answer is None else _one_writing(answer)


def last_number(response: str) -> str | None:
    """The last number of a response: for problems whose answer is a number, and models that keep to no form."""
    answer = find_answer(after_thinking(response), style="last_number").answer
    return None if answer is None else _one_writing(answer)


def multiple_choice(response: str) -> str | None:
    """The letter of a multiple choice, `None` if there is none."""
    return find_answer(after_thinking(response), style="choice").answer


def _one_writing(answer: str) -> str:
    tidied = tidy(answer)
    number = plain_number(tidied)
    return tidied if number is None else str(number)
