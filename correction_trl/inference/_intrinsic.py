"""Intrinsic self-correction: the model is asked to correct its answer and is told nothing about it."""

from ..policy.attempts import SELF_CORRECTION_INSTRUCTION
from .chat import Chat
from .strategy import Asking, Problem, Trace


def intrinsic(chat: Chat, problem: Problem, turns: int = 2, instruction: str = SELF_CORRECTION_INSTRUCTION) -> Asking:
    """
    The problem, an attempt, the instruction, the next attempt, and so on in one conversation, as SCoRe
    ([paper](https://huggingface.co/papers/2409.12917)) trains and measures it. The last attempt counts.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem.
        turns (`int`, *optional*, defaults to `2`):
            Attempts.
        instruction (`str`, *optional*):
            What the user says between two of them; by default SCoRe's, which never says whether the attempt was right.
    """
    trace = Trace()
    talk = trace.open(chat, problem.prompt, chat_template_kwargs=problem.chat_template_kwargs)
    trace.answer((yield talk))
    for _ in range(turns - 1):
        trace.answer((yield talk.say(instruction)))
    return trace.end("last turn")
