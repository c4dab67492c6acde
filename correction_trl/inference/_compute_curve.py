"""The inference-compute curve: a budget of samples, spent on first attempts alone or on attempts and corrections."""

from collections import Counter
from collections.abc import Callable

from ..errors import BadInput
from ..policy.attempts import SELF_CORRECTION_INSTRUCTION
from .answers import whole_text
from .chat import Chat
from .strategy import Asking, Problem, Trace


def parallel(
    chat: Chat,
    problem: Problem,
    samples: int = 32,
    temperature: float = 0.7,
    extract_answer: Callable[[str], str | None] = whole_text,
) -> Asking:
    """
    The majority of K first attempts, for K = 2, 4, ..., `samples`: attempt t of the trace is that of a budget of 2^t.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem.
        samples (`int`, *optional*, defaults to `32`):
            The largest budget, a power of two.
        temperature (`float`, *optional*, defaults to `0.7`):
            Of the samples; the paper's.
        extract_answer (`Callable`, *optional*):
            From a response to the answer that is counted, `None` if it has none; by default the whole text. Of equally
            frequent answers, the one that came first wins.

    Raises:
        BadInput: If `samples` is no power of two from 4 on.
    """
    return (yield from _majorities(chat, problem, samples, 1, "", temperature, extract_answer))


def parallel_corrected(
    chat: Chat,
    problem: Problem,
    samples: int = 32,
    temperature: float = 0.7,
    instruction: str = SELF_CORRECTION_INSTRUCTION,
    extract_answer: Callable[[str], str | None] = whole_text,
) -> Asking:
    """
    The majority of K/2 second attempts, each after a first one in its own conversation, for K = 2, 4, ..., `samples`
    (SCoRe, [paper](https://huggingface.co/papers/2409.12917)): the same number of samples as [`parallel`].

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem.
        samples (`int`, *optional*, defaults to `32`):
            The largest budget, a power of two.
        temperature (`float`, *optional*, defaults to `0.7`):
            Of both attempts; the paper's.
        instruction (`str`, *optional*):
            What the user says between the two; by default SCoRe's.
        extract_answer (`Callable`, *optional*):
            As in [`parallel`].

    Raises:
        BadInput: If `samples` is no power of two from 4 on.
    """
    return (yield from _majorities(chat, problem, samples, 2, instruction, temperature, extract_answer))


def _majorities(
    chat: Chat, problem: Problem, samples: int, turns: int, instruction: str, temperature: float, extract_answer
) -> Asking:
    if samples < 4 or samples & (samples - 1):
        raise BadInput(f"`samples` of the inference-compute curve must be a power of two from 4 on, got {samples}.")
    trace = Trace()
    kwargs = problem.chat_template_kwargs
    talks = [
        trace.open(chat, problem.prompt, temperature=temperature, chat_template_kwargs=kwargs)
        for _ in range(samples // turns)
    ]
    replies = yield talks
    for _ in range(turns - 1):
        replies = yield [talk.say(instruction) for talk in talks]
    answers = [extract_answer(reply) for reply in replies]
    counted, budget = 0, 2
    while budget <= samples:
        n = budget // turns
        votes = Counter(answer for answer in answers[:n] if answer is not None).most_common(1)
        chosen = answers.index(votes[0][0]) if votes else 0
        trace.answer(replies[chosen], tokens=sum(talk.tokens for talk in talks[counted:n]))
        counted, budget = n, 2 * budget
    return trace.end("all samples")
