"""Resample instead of correct: the control that tells a correction from a second chance."""

from .chat import Chat
from .strategy import Asking, Problem, Trace


def resample(chat: Chat, problem: Problem, turns: int = 2, temperature: float = 0.7) -> Asking:
    """
    The first attempt is thrown away and the problem is put again, in a new conversation; the last sample counts. A
    correction that gains no more than this corrects nothing.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem.
        turns (`int`, *optional*, defaults to `2`):
            Attempts.
        temperature (`float`, *optional*, defaults to `0.7`):
            Of the attempts after the first; that has the chat's, like the correction's it stands for.
    """
    trace = Trace()
    kwargs = problem.chat_template_kwargs
    temperatures = [None] + [temperature] * (turns - 1)
    talks = [trace.open(chat, problem.prompt, temperature=t, chat_template_kwargs=kwargs) for t in temperatures]
    for talk, reply in zip(talks, (yield talks), strict=True):
        trace.answer(reply, tokens=talk.tokens)
    return trace.end("last turn")
