"""One model answers, a trained corrector corrects: [`iterative.correct_iteratively`] as a strategy."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .chat import Chat, Conversation
from .iterative import correct_iteratively
from .strategy import Asking, Problem, Trace


class Corrector:
    """
    A trained corrector. Responses that wait for it are corrected together.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The corrector.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        **settings:
            Of [`~inference.correct_iteratively`]: `max_corrections`, `feedback_function`, `temperature`, ...
    """

    temperature = 0.0  # of `settings`, for each correction; what a conversation asks for does not count
    max_tokens = 0

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings

    def reply(self, conversations: Sequence["_Correction"]) -> None:
        """Corrects the responses of these conversations, each as often as the settings say."""
        names = conversations[0].problem.columns
        traces = correct_iteratively(
            self.model,
            self.tokenizer,
            [conversation.problem.prompt for conversation in conversations],
            [conversation.response for conversation in conversations],
            columns={name: [c.problem.columns[name] for c in conversations] for name in names},
            names=[conversation.name for conversation in conversations],
            **self.settings,
        )
        for conversation, trace in zip(conversations, traces, strict=True):
            conversation.corrected = trace
            conversation.take(trace.responses[-1], tokens=sum(trace.tokens[1:]))


class _Correction(Conversation):
    """A response on its way through the corrector."""

    def __init__(self, corrector: Corrector, problem: Problem, response: str):
        super().__init__(corrector, problem.prompt)
        self.problem, self.response = problem, response
        self.corrected: Trace | None = None


def with_corrector(chat: Chat, problem: Problem, corrector: Corrector) -> Asking:
    """
    A first response by one model, local or behind a server, and its corrections by another
    ([Self-Correct](https://huggingface.co/papers/2211.00053)).

    Args:
        chat ([`Chat`]):
            The model that answers.
        problem ([`Problem`]):
            The problem.
        corrector ([`Corrector`]):
            The model that corrects.
    """
    trace = Trace()
    first = yield trace.open(chat, problem.prompt, chat_template_kwargs=problem.chat_template_kwargs)
    trace.answer(first)
    correction = _Correction(corrector, problem, first)
    yield correction
    corrected = correction.corrected
    for response, tokens in zip(corrected.responses[1:], corrected.tokens[1:], strict=True):
        trace.answer(response, tokens)
    trace.replies += corrected.replies - 1  # it counts the first response as well
    trace.cut_off += corrected.cut_off
    trace.conversations += corrected.conversations
    return trace.end(corrected.stop)
