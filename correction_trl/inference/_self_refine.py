"""Self-Refine: the model gives itself feedback and refines its answer by it, until it finds nothing more."""

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
            Feedback with this phrase, in any case of letters and with or without its final point, ends the strategy.
    """
    trace = Trace()
    talk = trace.open(chat, problem.prompt, chat_template_kwargs=problem.chat_template_kwargs)
    trace.answer((yield talk))
    for _ in range(rounds):
        remarks = yield talk.say(feedback)
        if stop_phrase.rstrip(".").lower() in after_thinking(remarks).lower():
            return trace.end("stop phrase")
        trace.answer((yield talk.say(refine)))
    return trace.end("last round")
