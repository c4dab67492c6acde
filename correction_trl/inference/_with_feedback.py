"""Correction by what a program says: a failing test, a traceback, a checker's message."""

from collections.abc import Callable

from ..errors import BadInput
from ..functions import try_feedback_function
from .chat import Chat
from .strategy import Asking, Problem, Trace


FOLLOW_UP = (
    "This is what a program says about your answer:\n\n{feedback}\n\nCorrect the answer, and write the whole of it."
)


def with_feedback(
    chat: Chat,
    problem: Problem,
    feedback_function: Callable,
    turns: int = 2,
    follow_up: str = FOLLOW_UP,
    stop_phrase: str = "All tests passed.",
) -> Asking:
    """
    The problem, an attempt, what a program says about it, the next attempt, and so on in one conversation: "fix it
    until the tests pass". The last attempt counts.

    Tests that the model may see at work are help that a user can give as well. Where they are those that judge the
    result, the strategy knows the answer as an oracle does: say so beside its numbers.

    Args:
        chat ([`Chat`]):
            The model.
        problem ([`Problem`]):
            The problem; its columns go to the function.
        feedback_function (`Callable`):
            With the signature of a value function, one text per completion. Code runs in the sandbox of the function,
            such as `correction_trl.tasks.code_generation:failure`.
        turns (`int`, *optional*, defaults to `2`):
            Most attempts.
        follow_up (`str`, *optional*):
            What the user says between two of them, with `{feedback}` in it.
        stop_phrase (`str`, *optional*, defaults to `"All tests passed."`):
            Feedback that ends it, as empty feedback does.

    Raises:
        BadInput: If the follow-up has no place for the feedback, or the function fails.
    """
    if "{feedback}" not in follow_up:
        raise BadInput(
            "`follow_up` of the strategy `with_feedback` must hold {feedback}, where the program's words go."
        )
    trace = Trace()
    talk = trace.open(chat, problem.prompt, chat_template_kwargs=problem.chat_template_kwargs)
    answer = yield talk
    trace.answer(answer)
    columns = {name: [value] for name, value in problem.columns.items()}
    for _ in range(turns - 1):
        texts, _ = try_feedback_function(feedback_function, [problem.prompt], [answer], columns)
        said = (texts[0] or "").strip()
        if not said or said == stop_phrase:
            return trace.end("nothing to correct")
        answer = yield talk.say(follow_up.replace("{feedback}", said))
        trace.answer(answer)
    return trace.end("last turn")
