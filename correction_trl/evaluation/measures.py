"""Columns of the papers' tables that right and wrong do not say: what a `table_function` is made of."""

from collections.abc import Callable, Sequence

from ..functions import Prompt, call_value_function
from ..rewards.fluency import Fluency


def values_of_samples(
    value_function: Callable, prompts: Sequence[Prompt], samples: Sequence[Sequence[str]], columns: dict[str, list]
) -> list[list[float | None]]:
    """
    Values of several texts per problem.

    Args:
        value_function (`Callable`):
            With TRL's `reward_funcs` signature.
        prompts (`Sequence[str | list[dict]]`):
            The problems.
        samples (`Sequence[Sequence[str]]`):
            The texts of each problem.
        columns (`dict[str, list]`):
            The dataset's further columns.

    Returns:
        `list[list[float | None]]`, as `samples`.

    Raises:
        BadInput: From the value function.
    """
    rows = [row for row, texts in enumerate(samples) for _ in texts]
    texts = [text for of_problem in samples for text in of_problem]
    of_rows = {name: [column[row] for row in rows] for name, column in columns.items()}
    values = iter(call_value_function(value_function, [prompts[row] for row in rows], texts, of_rows))
    return [[next(values) for _ in of_problem] for of_problem in samples]


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of what could be judged; `None` where nothing could."""
    judged = [value for value in values if value is not None]
    return sum(judged) / len(judged) if judged else None


def distinct(texts: Sequence[str], n: int) -> float | None:
    """
    How varied the samples of a problem are: different n-grams of words, over all words
    ([paper](https://huggingface.co/papers/1510.03055)).

    Args:
        texts (`Sequence[str]`):
            The samples of one problem. N-grams do not reach from one into the next.
        n (`int`):
            Words of an n-gram.

    Returns:
        `float` in [0, 1], or `None` if there is no word.
    """
    words = [text.split() for text in texts]
    grams = {tuple(of_text[i : i + n]) for of_text in words for i in range(len(of_text) - n + 1)}
    n_words = sum(map(len, words))
    return len(grams) / n_words if n_words else None


def fluency_column(
    fluency: Fluency, prompts: Sequence[Prompt], samples: Sequence[Sequence[str]]
) -> dict[str, list[float | None]]:
    """
    The fluency of the samples of each problem, taken together, as a column that names the reference model.

    Args:
        fluency ([`~correction_trl.rewards.Fluency`]):
            The reference model.
        prompts (`Sequence[str | list[dict]]`):
            The problems.
        samples (`Sequence[Sequence[str]]`):
            The texts of each problem.

    Returns:
        `dict[str, list[float | None]]`: `fluency/NAME`, mean log-probability per token, in nats; `None` where all
        texts are empty.
    """
    scored = fluency.score(
        [text for texts in samples for text in texts],
        [prompt for prompt, texts in zip(prompts, samples, strict=True) for _ in texts],
    )
    found, column = iter(scored), []
    for texts in samples:
        totals, counts = zip(*[next(found) for _ in texts], strict=True)
        column.append(sum(totals) / sum(counts) if sum(counts) else None)
    return {f"fluency/{fluency.name.rpartition('/')[2]}": column}
