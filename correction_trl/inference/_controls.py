"""The controls: as many samples as a correction has attempts, without correcting anything.

Self-consistency votes, best of n lets the value function choose (an oracle wherever that knows the gold answer), and
resampling throws the first attempt away: the control that tells a correction from a second chance.
"""

from collections import Counter
from collections.abc import Callable

from ..functions import call_value_function
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


def best_of_n(
    chat: Chat,
    problem: Problem,
    value_function: Callable,
    samples: int = 2,
    temperature: float = 0.7,
) -> Asking:
    """
    Independent samples, of which the value function chooses. With a value function that sees the gold answer this is
    the most that any choice among the samples can reach, not a method: the evaluation recipe calls it
    `best_of_n_oracle`.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem; its columns are handed to the value function.
        value_function (`Callable`):
            With TRL's `reward_funcs` signature. What it cannot judge (`None`) is chosen last; of equals, the first.
        samples (`int`, *optional*, defaults to `2`):
            Samples.
        temperature (`float`, *optional*, defaults to `0.7`):
            Of the samples.
    """
    trace = Trace()
    kwargs = problem.chat_template_kwargs
    talks = [
        trace.open(chat, problem.prompt, temperature=temperature, chat_template_kwargs=kwargs) for _ in range(samples)
    ]
    replies = yield talks
    columns = {name: [value] * samples for name, value in problem.columns.items()}
    values = call_value_function(value_function, [problem.prompt] * samples, replies, columns)
    values = [float("-inf") if value is None else value for value in values]
    for n, talk in enumerate(talks, start=1):
        trace.answer(replies[values.index(max(values[:n]))], tokens=talk.tokens)
    return trace.end("all samples")


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
