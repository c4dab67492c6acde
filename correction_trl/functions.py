"""Functions that users write (teachers, value functions, length priors): finding them by name, calling them, and
saying which row went wrong when they fail.

A **value function** has the signature of TRL's reward functions: it gets `prompts`, `completions` and every further
column of the dataset as keyword arguments, and returns one `float` (or `None`: cannot be judged) per completion. A
**teacher** is a function, or an object with a method `correct`, that gets `prompts`, `responses` and the further
columns, and returns one correction (or `None`: no correction to be had) per response.
"""

import asyncio
import functools
import importlib
import inspect
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .errors import BadInput, TeacherFailed, first_line


Prompt = str | list[dict[str, Any]]


def whole_characters(text: str) -> str:
    """
    A text in which each half of a character (a lone surrogate, which no tokenizer, file or database takes) is U+FFFD.
    Two halves that belong together become their character.

    Args:
        text (`str`):
            From a server, or from a user's function.
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def import_function(path: str, setting: str) -> Callable:
    """
    Import what a setting names as `"module:function"`.

    Args:
        path (`str`):
            `"package.module:function"`.
        setting (`str`):
            Name of the setting, for the error message.

    Raises:
        BadInput: If the path has another form, or the module or the function does not exist.
    """
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name:
        raise BadInput(f"`{setting}={path!r}` is not of the form 'package.module:function'.")
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"`{setting}={path!r}`: there is no module {error.name!r}; is its folder on PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise BadInput(f"`{setting}={path!r}`: the module {module_name!r} has no {function_name!r}.") from error


def with_settings(function: Callable, settings: Mapping[str, Any], setting: str, n_given: int) -> functools.partial:
    """
    A function with settings of the user, in which `"module:function"` stands for the function.

    Args:
        function (`Callable`):
            The function; a `partial` keeps what it has.
        settings (`dict`):
            By parameter.
        setting (`str`):
            Name of the setting that they come from, for the error message.
        n_given (`int`):
            Parameters that it gets when it is called, and that are no settings: the first so many.

    Raises:
        BadInput: If the function has no such parameter, or there is no function of that name.
    """
    function = functools.partial(function)
    name = getattr(function.func, "__name__", type(function.func).__name__)
    known = [p for p in inspect.signature(function.func).parameters.values() if p.kind is not p.VAR_KEYWORD]
    known = [parameter.name for parameter in known]
    for parameter in settings:
        if parameter not in known:
            raise BadInput(
                f"{setting}: {name!r} has no setting {parameter!r}; it has {', '.join(known[n_given:]) or 'none'}."
            )
    named = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
    bound = functools.partial(
        function,
        **{
            parameter: import_function(value, f"{setting}.{parameter}")
            if isinstance(value, str) and named.fullmatch(value)
            else value
            for parameter, value in settings.items()
        },
    )
    bound.__name__ = name
    return bound


def named_text(text: str, setting: str) -> str:
    """
    What a setting says, or what the text that it names as `"module:NAME"` says, such as an instruction of a paper.

    Args:
        text (`str`):
            `"package.module:NAME"`, the name in capital letters; everything else is the text itself.
        setting (`str`):
            Name of the setting, for the error message.

    Raises:
        BadInput: If there is no such text.
    """
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Z][A-Z0-9_]*", text):
        return text
    found = import_function(text, setting)
    if not isinstance(found, str):
        raise BadInput(f"`{setting}={text!r}` names {type(found).__name__}; it must be a text.")
    return found


def call_teacher(
    teacher: Any, prompts: Sequence[Prompt], responses: Sequence[str], columns: dict[str, list]
) -> list[str | None]:
    """
    Ask a teacher for the corrections of a batch and check what it returns.

    Args:
        teacher (`Callable` or object with a method `correct`):
            Called as `teacher(prompts=..., responses=..., **columns)`.
        prompts (`Sequence[str | list[dict]]`):
            Prompts as they stand in the dataset.
        responses (`Sequence[str]`):
            The policy's responses, decoded, without special tokens.
        columns (`dict[str, list]`):
            The dataset's further columns, one list each.

    Returns:
        `list[str | None]`: The corrected responses; `None` where the teacher has none: an empty text, or one of white
        space alone, cannot be trained on (it would teach to say nothing) and is none either. Half a character, which
        no tokenizer takes, is replaced by U+FFFD, with a warning.

    Raises:
        BadInput: If the number or the type of the returned items is wrong.
        TeacherFailed: If the teacher raises.
    """
    correct = teacher if inspect.isroutine(teacher) else getattr(teacher, "correct", teacher)
    if inspect.isclass(teacher) or not callable(correct):
        raise BadInput(f"{teacher!r:.80} is no teacher: pass a function, or an object with a method `correct`.")
    try:
        corrections = _result(correct(prompts=list(prompts), responses=list(responses), **columns))
        is_list = isinstance(corrections, Sequence) and not isinstance(corrections, str)
        corrections = list(corrections) if is_list else None
    except (BadInput, TeacherFailed):  # a teacher of this package that has said it all
        raise
    except Exception as error:
        raise TeacherFailed(
            f"The teacher {teacher_name(teacher)!r} raised {type(error).__name__}: {_said(error)}."
        ) from error
    if not is_list or len(corrections) != len(responses):
        returned = f"{len(corrections)} items" if is_list else "no list"
        raise BadInput(
            f"The teacher {teacher_name(teacher)!r} returned {returned} for {len(responses)} responses; it must "
            "return one correction per response, `None` where it has none."
        )
    for index, correction in enumerate(corrections):
        if correction is not None and not isinstance(correction, str):
            raise BadInput(
                f"The teacher {teacher_name(teacher)!r} returned {type(correction).__name__} for item {index} of the "
                "batch; a correction is the corrected response as text, or `None`."
            )
    whole = [correction if correction is None else whole_characters(correction) for correction in corrections]
    n_changed = sum(after != before for after, before in zip(whole, corrections, strict=True))
    if n_changed:
        warnings.warn(
            f"{n_changed} of {len(whole)} corrections by the teacher {teacher_name(teacher)!r} held half of a "
            "character (a lone surrogate); it was replaced by U+FFFD.",
            stacklevel=2,
        )
    return [correction if correction and correction.strip() else None for correction in whole]


def teacher_name(teacher: Any) -> str:
    """Name of a teacher for messages and logs: the function's, or the class's."""
    return teacher.__name__ if inspect.isroutine(teacher) else type(teacher).__name__


def call_value_function(
    function: Callable, prompts: Sequence[Prompt], responses: Sequence[str], columns: dict[str, list]
) -> list[float | None]:
    """
    Call a value function (TRL's `reward_funcs` signature, async ones too) on decoded responses and check what it
    returns.

    Args:
        function (`Callable`):
            Called as `function(prompts=..., completions=..., **columns)`; the completions are in the format of the
            prompts: plain text, or a list with one assistant message.
        prompts (`Sequence[str | list[dict]]`):
            Prompts as they stand in the dataset.
        responses (`Sequence[str]`):
            The responses, decoded.
        columns (`dict[str, list]`):
            The dataset's further columns, one list each.

    Returns:
        `list[float | None]`: One value per response; `None` where the function could not judge.

    Raises:
        BadInput: If the function raises (the message names the first row that does), or returns the wrong number of
            items, something that is not a number, or NaN.
    """
    name = getattr(function, "__name__", type(function).__name__)

    def call(rows: range) -> list:
        completions = [
            responses[i] if isinstance(prompts[i], str) else [{"role": "assistant", "content": responses[i]}]
            for i in rows
        ]
        values = function(
            prompts=[prompts[i] for i in rows],
            completions=completions,
            **{key: [column[i] for i in rows] for key, column in columns.items()},
        )
        return _result(values)

    try:
        values = call(range(len(responses)))
    except BadInput:
        raise
    except Exception as error:
        row = _first_row_that_raises(call, len(responses))
        where = f"row {row} of the batch (response {responses[row]!r:.200})" if row is not None else "the batch"
        raise BadInput(
            f"The value function {name!r} raised {type(error).__name__} on {where}: {_said(error)}"
        ) from error
    try:
        count = "no list" if isinstance(values, str | bytes | Mapping | Set) else f"{len(values)} values"
    except TypeError:
        count = "nothing" if values is None else "no list"
    if count != f"{len(responses)} values":
        raise BadInput(f"The value function {name!r} returned {count} for {len(responses)} responses.")
    checked = []
    for row, value in enumerate(values):
        if value is not None:
            try:
                value = float(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise BadInput(
                    f"The value function {name!r} returned {value!r:.80} for row {row}; expected a number or None."
                ) from error
            if math.isnan(value):
                raise BadInput(
                    f"The value function {name!r} returned NaN for row {row} (response {responses[row]!r:.200}); "
                    "return None for what cannot be judged."
                )
        checked.append(value)
    return checked


def call_table_function(
    function: Callable, prompts: Sequence[Prompt], samples: Sequence[Sequence[str]], columns: dict[str, list]
) -> dict[str, list[float | None]]:
    """
    Call a table function on the samples of problems and check what it returns.

    Args:
        function (`Callable`):
            Called as `function(prompts=..., samples=..., **columns)`.
        prompts (`Sequence[str | list[dict]]`):
            Prompts as they stand in the dataset.
        samples (`Sequence[Sequence[str]]`):
            The texts of each problem.
        columns (`dict[str, list]`):
            The dataset's further columns, one list each.

    Returns:
        `dict[str, list[float | None]]`: By name one number per problem.

    Raises:
        BadInput: If the function raises, or returns something else.
    """
    function_name = getattr(function, "func", function)
    function_name = getattr(function_name, "__name__", type(function_name).__name__)
    try:
        table = function(prompts=list(prompts), samples=[list(texts) for texts in samples], **columns)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"The table function {function_name!r} raised {type(error).__name__}: {_said(error)}"
        ) from error
    wanted = f"it must return a dict from names to lists of {len(prompts)} numbers (or None), one per problem."
    if not isinstance(table, Mapping):
        raise BadInput(f"The table function {function_name!r} returned {type(table).__name__}; {wanted}")
    for name, column in table.items():
        if not isinstance(column, Sequence) or len(column) != len(prompts):
            raise BadInput(f"The table function {function_name!r}, column {name!r}: {wanted}")
        for value in column:
            if value is not None and (not isinstance(value, int | float) or math.isnan(value)):
                raise BadInput(f"The table function {function_name!r}, column {name!r} holds {value!r:.80}; {wanted}")
    return {str(name): [None if v is None else float(v) for v in column] for name, column in table.items()}


def as_value_function(
    reward_function: Callable, completion_ids: Callable[[list[str]], list[list[int]]], trainer_state: Any
) -> Callable:
    """
    A reward function of TRL's trainers as a value function: it gets what TRL hands over beside the columns, and a NaN
    counts as `None`.

    Args:
        reward_function (`Callable`):
            The function, possibly async.
        completion_ids (`Callable`):
            From the texts of completions to their token ids.
        trainer_state ([`~transformers.TrainerState`]):
            Of the run.
    """

    def clean(values: Any) -> Any:
        if not isinstance(values, list | tuple):
            return values
        return [None if isinstance(value, float) and math.isnan(value) else value for value in values]

    async def clean_when_there(values: Any) -> Any:
        return clean(await values)

    @functools.wraps(reward_function)
    def call(prompts, completions, **columns):
        values = reward_function(
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids([c if isinstance(c, str) else c[-1]["content"] for c in completions]),
            trainer_state=trainer_state,
            log_extra=lambda column, values: None,
            log_metric=lambda name, value: None,
            **columns,
        )
        return clean_when_there(values) if inspect.isawaitable(values) else clean(values)

    return call


def try_value_function(
    function: Callable, prompts: Sequence[Prompt], responses: Sequence[str], columns: dict[str, list]
) -> tuple[list[float | None], list[str]]:
    """
    Values of responses. A row on which the value function raises or returns NaN gets `None`.

    Args:
        function, prompts, responses, columns:
            See [`call_value_function`].

    Returns:
        `tuple[list[float | None], list[str]]`: One value per response, and what went wrong, one sentence per failed
        row.

    Raises:
        BadInput: If it fails on every row.
    """
    return _row_by_row_if_needed(call_value_function, function, prompts, responses, columns)


def try_feedback_function(
    function: Callable, prompts: Sequence[Prompt], responses: Sequence[str], columns: dict[str, list]
) -> tuple[list[str | None], list[str]]:
    """
    Feedback on responses. A row on which the feedback function raises or returns no text gets `None`.

    Args:
        function (`Callable`):
            Called as `function(prompts=..., completions=..., **columns)` as a value function is; returns one text per
            completion (empty or `None`: nothing to say).
        prompts, responses, columns:
            See [`call_value_function`].

    Returns:
        `tuple[list[str | None], list[str]]`: One text per response, and what went wrong, one sentence per failed row.

    Raises:
        BadInput: If it fails on every row.
    """
    return _row_by_row_if_needed(_call_feedback_function, function, prompts, responses, columns)


def _call_feedback_function(
    function: Callable, prompts: Sequence[Prompt], responses: Sequence[str], columns: dict[str, list]
) -> list[str | None]:
    name = getattr(function, "__name__", type(function).__name__)
    completions = [
        response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    try:
        texts = _result(function(prompts=list(prompts), completions=completions, **columns))
        texts = list(texts) if isinstance(texts, Sequence) and not isinstance(texts, str) else None
    except TeacherFailed:  # a server that is down is so for every row
        raise
    except Exception as error:
        raise BadInput(
            f"The feedback function {name!r} raised {type(error).__name__} on a batch whose first response is "
            f"{responses[0]!r:.200}: {_said(error)}"
        ) from error
    if texts is None or len(texts) != len(responses):
        raise BadInput(f"The feedback function {name!r} must return a list of {len(responses)} texts, one each.")
    for text, response in zip(texts, responses, strict=True):
        if text is not None and not isinstance(text, str):
            raise BadInput(
                f"The feedback function {name!r} returned {type(text).__name__} for the response {response!r:.200}; "
                "feedback is text, or None."
            )
    return [whole_characters(text) if text else None for text in texts]  # what a program printed is any text


def _row_by_row_if_needed(call, function, prompts, responses, columns) -> tuple[list, list[str]]:
    """Halve a batch that fails until the rows that do are found."""
    if not responses:
        return [], []
    try:
        return call(function, prompts, responses, columns), []
    except BadInput as error:
        first_error = error

    results, problems = [None] * len(responses), []
    failed = [range(len(responses))]
    while failed:
        rows = failed.pop()
        try:
            of_rows = {key: [column[i] for i in rows] for key, column in columns.items()}
            found = call(function, [prompts[i] for i in rows], [responses[i] for i in rows], of_rows)
            results[rows.start : rows.stop] = found
        except BadInput as error:
            if len(rows) == 1:
                problems.append(str(error))
            else:
                middle = (rows.start + rows.stop) // 2
                failed += [range(rows.start, middle), range(middle, rows.stop)]
    if len(problems) == len(responses):
        raise first_error
    return results, problems


def _said(error: Exception) -> str:
    """The first line of what an exception of a user's function says, to end a sentence with."""
    return whole_characters(first_line(error))[:300].rstrip(".")


def _result(value: Any) -> Any:
    """The value, or what an async function's coroutine returns. It gets a thread, and so an event loop, of its own: a
    notebook's cells run inside one already."""
    if not inspect.isawaitable(value):
        return value

    async def wait():
        return await value

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, wait()).result()


def _first_row_that_raises(call: Callable, n_rows: int) -> int | None:
    """The first row on which a batch function raises when called row by row, if any does so alone."""
    for row in range(n_rows):
        try:
            call(range(row, row + 1))
        except Exception:
            return row
    return None
