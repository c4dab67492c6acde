"""Errors whose message is meant for the person who started the run: one sentence that names the culprit and the
remedy. Recipes end with that sentence; everything else is a bug and keeps its traceback."""


class BadInput(ValueError):
    """Data, settings or a user's function that a run cannot start or go on with."""


class TeacherFailed(RuntimeError):
    """A teacher that raised, or that returned something that is not a correction."""


class ServerFailed(TeacherFailed):
    """A server, of a teacher or of a model that is talked to, that is down, refuses the key or lacks the model."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, cut down to what fits into a sentence."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
