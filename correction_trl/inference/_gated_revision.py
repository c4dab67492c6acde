"""Gated revision: only what the model's own check refutes is revised, so that right answers are left alone."""

import re
from collections.abc import Callable, Generator
from typing import Any

from ..policy.attempts import SELF_CORRECTION_INSTRUCTION
from ..rewards.common import after_thinking
from .answers import whole_text
from .chat import Chat, Conversation
from .strategy import Asking, Problem, Trace


# check(chat, trace, problem, response, talk) -> True (the response holds), False (it is refuted) or None (no verdict);
# `talk` is the conversation that ends with the response
Check = Callable[[Chat, Trace, Problem, str, Conversation], Generator[Any, Any, bool | None]]

QUESTION = (
    "Check the answer above step by step. Then end with one word on a line of its own: CORRECT if the answer is "
    "right, WRONG if it is not."
)


def ask_whether_right(
    chat: Chat, trace: Trace, problem: Problem, response: str, talk: Conversation, question: str = QUESTION
) -> Generator[Any, Any, bool | None]:
    """
    A check: the model is asked, in a conversation that a revision does not see, whether its answer is right.

    Args:
        chat, trace, problem, response, talk:
            See `Check`.
        question (`str`, *optional*):
            It should ask for CORRECT or WRONG; yes and no, right and incorrect are understood as well. The last such
            word of the reply is the verdict.
    """
    return read_verdict((yield trace.fork(talk).say(question)))


def read_verdict(reply: str) -> bool | None:
    """The last word of a reply that is a verdict; `None` if there is none. "Not correct" is a refutation."""
    words = re.findall(
        r"\b(?:(not)\s+)?(correct|right|yes|true|wrong|incorrect|no|false)\b", after_thinking(reply), re.IGNORECASE
    )
    if not words:
        return None
    negation, word = words[-1]
    return (word.lower() in ("correct", "right", "yes", "true")) != bool(negation)


def samples_agree(
    chat: Chat,
    trace: Trace,
    problem: Problem,
    response: str,
    talk: Conversation,
    samples: int = 1,
    share: float = 1.0,
    temperature: float = 1.0,
    extract_answer: Callable[[str], str | None] = whole_text,
) -> Generator[Any, Any, bool | None]:
    """
    A check for models that cannot judge in words: fresh samples give the same answer.

    Args:
        chat, trace, problem, response, talk:
            See `Check`.
        samples (`int`, *optional*, defaults to `1`):
            Fresh samples.
        share (`float`, *optional*, defaults to `1.0`):
            The response holds if at least this share of them agrees.
        temperature (`float`, *optional*, defaults to `1.0`):
            Of the samples.
        extract_answer (`Callable`, *optional*):
            See `answers.py`; by default the whole text.
    """
    kwargs = problem.chat_template_kwargs
    talks = [
        trace.open(chat, problem.prompt, temperature=temperature, chat_template_kwargs=kwargs) for _ in range(samples)
    ]
    replies = yield talks
    agreeing = sum(extract_answer(reply) == extract_answer(response) for reply in replies)
    return agreeing >= share * samples


def gated_revision(
    chat: Chat,
    problem: Problem,
    rounds: int = 1,
    check: Check = ask_whether_right,
    instruction: str = SELF_CORRECTION_INSTRUCTION,
) -> Asking:
    """
    An attempt; a check; where that refutes the attempt, a revision in the same conversation, and so on. A check
    without a verdict changes nothing.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem.
        rounds (`int`, *optional*, defaults to `1`):
            Most revisions.
        check (`Callable`, *optional*, defaults to `ask_whether_right`):
            [`ask_whether_right`], [`samples_agree`], ProCo's verification, or one's own; settings are bound with
            `functools.partial`.
        instruction (`str`, *optional*):
            Asks for the revision.
    """
    trace = Trace()
    talk = trace.open(chat, problem.prompt, chat_template_kwargs=problem.chat_template_kwargs)
    response = yield talk
    trace.answer(response)
    for _ in range(rounds):
        verdict = yield from check(chat, trace, problem, response, talk)
        if verdict is not False:
            return trace.end("held" if verdict else "no verdict")
        response = yield talk.say(instruction)
        trace.answer(response)
    return trace.end("last round")
