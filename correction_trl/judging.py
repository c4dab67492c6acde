"""Values and feedback of many responses, where one that cannot be judged costs that one only."""

from collections.abc import Callable, Sequence

from .errors import BadInput
from .functions import Prompt, _result, call_value_function


def judge(
    function: Callable, prompts: Sequence[Prompt], responses: Sequence[str], columns: dict[str, list]
) -> tuple[list[float | None], list[str]]:
    """
    Values of responses. A row on which the value function raises or returns NaN gets `None`.

    Args:
        function (`Callable`):
            A value function, see [`~correction_trl.functions.call_value_function`].
        prompts (`Sequence[str | list[dict]]`):
            Prompts as they stand in the dataset.
        responses (`Sequence[str]`):
            The responses, decoded.
        columns (`dict[str, list]`):
            The dataset's further columns, one list each.

    Returns:
        `tuple[list[float | None], list[str]]`: One value per response, and what went wrong, one sentence per failed
        row.

    Raises:
        BadInput: If it fails on every row.
    """
    return _row_by_row_if_needed(call_value_function, function, prompts, responses, columns)


def comment(
    function: Callable, prompts: Sequence[Prompt], responses: Sequence[str], columns: dict[str, list]
) -> tuple[list[str | None], list[str]]:
    """
    Feedback on responses. A row on which the feedback function raises or returns no text gets `None`.

    Args:
        function (`Callable`):
            Called as `function(prompts=..., completions=..., **columns)` as a value function is; returns one text per
            completion (empty or `None`: nothing to say).
        prompts (`Sequence[str | list[dict]]`):
            Prompts as they stand in the dataset.
        responses (`Sequence[str]`):
            The responses, decoded.
        columns (`dict[str, list]`):
            The dataset's further columns, one list each.

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
    except Exception as error:
        raise BadInput(
            f"The feedback function {name!r} raised {type(error).__name__} on a batch whose first response is "
            f"{responses[0]!r:.200}: {error}"
        ) from error
    if not isinstance(texts, Sequence) or isinstance(texts, str) or len(texts) != len(responses):
        raise BadInput(f"The feedback function {name!r} must return a list of {len(responses)} texts, one each.")
    for text, response in zip(texts, responses, strict=True):
        if text is not None and not isinstance(text, str):
            raise BadInput(
                f"The feedback function {name!r} returned {type(text).__name__} for the response {response!r:.200}; "
                "feedback is text, or None."
            )
    return [text or None for text in texts]


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
