"""Self-consistency: independent samples and the answer that most of them give. A control for every correction."""

from collections import Counter
from collections.abc import Callable

from .answers import whole_text
from .chat import Chat
from .strategy import Asking, Problem, Trace


def self_consistency(
    chat: Chat,
    problem: Problem,
    samples: int = 2,
    temperature: float = 0.7,
    extract_answer: Callable[[str], str | None] = whole_text,
) -> Asking:
    """
    Majority of independent samples ([paper](https://huggingface.co/papers/2203.11171)). What it would have answered
    after fewer samples is in the trace as well.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem.
        samples (`int`, *optional*, defaults to `2`):
            Samples. Give it as many as the correction that it is compared with has attempts.
        temperature (`float`, *optional*, defaults to `0.7`):
            Of the samples.
        extract_answer (`Callable`, *optional*):
            From a response to the answer that is counted, `None` if it has none (see `answers.py`); by default the
            whole text. Of equally frequent answers, the one that came first wins.
    """
    trace = Trace()
    kwargs = problem.chat_template_kwargs
    talks = [
        trace.open(chat, problem.prompt, temperature=temperature, chat_template_kwargs=kwargs) for _ in range(samples)
    ]
    replies = yield talks
    answers = [extract_answer(reply) for reply in replies]
    for n, talk in enumerate(talks, start=1):
        # `most_common` keeps the order of first appearance among equals; without any answer, the first reply stays
        votes = Counter(answer for answer in answers[:n] if answer is not None).most_common(1)
        chosen = answers.index(votes[0][0]) if votes else 0
        trace.answer(replies[chosen], tokens=talk.tokens)
    return trace.end("all samples")
