"""Best of n with the value function: an oracle wherever that function knows the gold answer."""

from collections.abc import Callable

from ..functions import call_value_function
from .chat import Chat
from .strategy import Asking, Problem, Trace


def best_of_n_oracle(
    chat: Chat,
    problem: Problem,
    value_function: Callable,
    samples: int = 2,
    temperature: float = 0.7,
) -> Asking:
    """
    Independent samples, of which the value function chooses. With a value function that sees the gold answer this is
    the most that any choice among the samples can reach, not a method: hence its name.

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
