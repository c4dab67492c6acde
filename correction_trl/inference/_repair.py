"""Offline repair: a first attempt that another model wrote, corrected by this one."""

from ..errors import BadInput
from ..policy.attempts import SELF_CORRECTION_INSTRUCTION
from .chat import Chat
from .strategy import Asking, Problem, Trace


def repair(
    chat: Chat,
    problem: Problem,
    attempt_column: str = "first_attempt",
    turns: int = 2,
    instruction: str = SELF_CORRECTION_INSTRUCTION,
) -> Asking:
    """
    The stored attempt stands as the model's own first reply, and is corrected as [`intrinsic`] corrects
    (MBPP-R of SCoRe, [paper](https://huggingface.co/papers/2409.12917)): how much a model can repair, whatever it
    would have written itself. `acc@t1` is that of the stored attempts.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem.
        attempt_column (`str`, *optional*, defaults to `"first_attempt"`):
            Column of the stored attempts.
        turns (`int`, *optional*, defaults to `2`):
            Attempts, the stored one included.
        instruction (`str`, *optional*):
            What the user says between two of them; by default SCoRe's.

    Raises:
        BadInput: If the row has no stored attempt.
    """
    attempt = problem.columns.get(attempt_column)
    if not isinstance(attempt, str) or not attempt.strip():
        raise BadInput(
            f"The strategy `repair` needs a stored attempt in the column {attempt_column!r} of each row; the columns "
            f"are {', '.join(problem.columns)}. Name another with `strategy_settings: {{repair: {{attempt_column: "
            "...}}`."
        )
    if isinstance(problem.prompt, str):
        asked = f"{problem.prompt}{attempt}\n\n{instruction}\n\n"
    else:
        asked = [
            *problem.prompt,
            {"role": "assistant", "content": attempt},
            {"role": "user", "content": instruction},
        ]
    trace = Trace()
    trace.answer(attempt, tokens=0)
    talk = trace.open(chat, asked, chat_template_kwargs=problem.chat_template_kwargs)
    trace.answer((yield talk))
    for _ in range(turns - 2):
        trace.answer((yield talk.say(instruction)))
    return trace.end("last turn")
