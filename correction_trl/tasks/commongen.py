"""
CommonGen: one sentence that uses all of the given words ([paper](https://huggingface.co/papers/1911.03705)).
Constrained generation in [Self-Correct](https://huggingface.co/papers/2211.00053).

Data: `allenai/common_gen` on the Hub, or a JSON-lines file of the early release (`concept_set`, `scene`). Value: the
share of the words that the sentence has; feedback: those that are missing.
"""

from collections.abc import Callable

from datasets import Dataset

from ..data_utils import published_columns
from ..evaluation.measures import fluency_column, mean_of, values_of_samples
from ..rewards.constraints import concept_coverage, concept_list, missing_concepts
from ..rewards.fluency import Fluency


__all__ = ["INSTRUCTION", "coverage", "missing", "problems", "table"]

HUB_ID = "allenai/common_gen"
INSTRUCTION = (
    "Write one sentence about an everyday scene that uses all of these words, in any order and any form: {concepts}."
)

coverage = concept_coverage
missing = missing_concepts


def problems(dataset: Dataset) -> Dataset:
    """
    One row per set of words: `prompt` (a message), `concepts` (a list of words), `references` (people's sentences).

    Args:
        dataset ([`~datasets.Dataset`]):
            A split: `concepts` and `target`, a row per reference, as on the Hub; or `concept_set` and `scene`.

    Raises:
        BadInput: If the columns are others.
    """
    words, sentences = published_columns(dataset, "CommonGen", ("concepts", "target"), ("concept_set", "scene"))
    references: dict[tuple[str, ...], list[str]] = {}
    for row in dataset.select_columns([words, sentences]):
        told = [row[sentences]] if isinstance(row[sentences], str) else row[sentences] or []
        told = [text for text in told if text]  # the test split has none
        references.setdefault(tuple(concept_list(row[words])), []).extend(told)
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": INSTRUCTION.format(concepts=", ".join(concepts))}],
                "concepts": list(concepts),
                "references": told,
            }
            for concepts, told in references.items()
        ]
    )


def table(
    prompts: list, samples: list[list[str]], fluency_model: str | None = None, device: str = "auto", **columns: list
) -> dict[str, list[float | None]]:
    """
    The columns of the paper's table, for `table_function`: `coverage` (share of the words that a sentence has),
    `all_covered` (share of the sentences that have all), and `fluency/NAME` under a reference model.

    Args:
        prompts (`list`):
            The problems.
        samples (`list[list[str]]`):
            The sentences of each problem.
        fluency_model (`str`, *optional*):
            Hub id or folder of the reference model; without one there is no such column.
        device (`str`, *optional*, defaults to `"auto"`):
            Where it runs; by default on the GPU where there is one.
        **columns (`list`):
            `concepts`.

    Returns:
        `dict[str, list[float | None]]`: By name one number per problem.
    """
    return coverage_table(coverage, prompts, samples, fluency_model, device, columns)


def coverage_table(
    value_function: Callable,
    prompts: list,
    samples: list[list[str]],
    fluency_model: str | None,
    device: str,
    columns: dict[str, list],
) -> dict[str, list[float | None]]:
    """The table of a task whose value function is a share of what must be said."""
    values = values_of_samples(value_function, prompts, samples, columns)
    found = {
        "coverage": [mean_of(of_problem) for of_problem in values],
        "all_covered": [mean_of([v if v is None else float(v == 1) for v in of_problem]) for of_problem in values],
    }
    return found | (fluency_column(Fluency(fluency_model, device=device), prompts, samples) if fluency_model else {})
