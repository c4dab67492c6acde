"""Self-Refine: the model gives itself feedback and refines its answer by it, until it finds nothing more."""

import re

from ..rewards.common import after_thinking
from .chat import Chat
from .strategy import Asking, Problem, Trace


STOP_PHRASE = "There is nothing to correct."
FEEDBACK = (
    "Check the answer above step by step. Name each error: where it is, and why it is wrong. If the answer is right, "
    f'write only: "{STOP_PHRASE}"'
)
REFINE = "Use these remarks to improve the answer. Write the whole improved answer."


def self_refine(
    chat: Chat,
    problem: Problem,
    rounds: int = 3,
    feedback: str = FEEDBACK,
    refine: str = REFINE,
    stop_phrase: str = STOP_PHRASE,
) -> Asking:
    """
    Answer, feedback, refined answer, feedback, ... ([paper](https://huggingface.co/papers/2303.17651)). All of it
    stands in one conversation, so that each round sees the earlier ones, as the paper has it.

    Departures: the paper has prompts with examples for each of its tasks; these are general ones without examples.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem.
        rounds (`int`, *optional*, defaults to `3`):
            Most refinements.
        feedback (`str`, *optional*):
            Asks for feedback; it should say when to write the stop phrase.
        refine (`str`, *optional*):
            Asks for the refined answer.
        stop_phrase (`str`, *optional*, defaults to `"There is nothing to correct."`):
            Feedback with this phrase as a sentence of its own, in any case of letters and with or without its final
            point, ends the strategy; one that quotes it, or goes on after it, does not.
    """
    trace = Trace()
    talk = trace.open(chat, problem.prompt, chat_template_kwargs=problem.chat_template_kwargs)
    trace.answer((yield talk))
    for _ in range(rounds):
        remarks = yield talk.say(feedback)
        if says_sentence(after_thinking(remarks), stop_phrase):
            return trace.end("stop phrase")
        trace.answer((yield talk.say(refine)))
    return trace.end("last round")


def says_sentence(text: str, sentence: str) -> bool:
    """Whether a sentence stands in a text as one, from its beginning to its end."""
    sentence = re.escape(sentence.strip().rstrip("."))
    return re.search(rf"(?:^|[.!?\n])[ \t*_#>-]*{sentence}[ \t*_]*(?:[.!\n]|$)", text, re.IGNORECASE) is not None
