"""
E2E: a sentence about a restaurant that says everything that a list of slots holds
([paper](https://huggingface.co/papers/1706.09254)). Constrained generation in
[Self-Correct](https://huggingface.co/papers/2211.00053).

Data: `e2e_nlg` or `GEM/e2e_nlg` on the Hub, or the challenge's CSV files (`mr`, `ref`). Value: the share of the slots
that the text realises, by rules; feedback: those that are missing.
"""

from datasets import Dataset

from ..data_utils import published_columns
from ..rewards.constraints import missing_slots, slot_coverage
from .commongen import coverage_table


__all__ = ["INSTRUCTION", "coverage", "missing", "problems", "table"]

HUB_ID = "GEM/e2e_nlg"
INSTRUCTION = "Describe this place in one or two sentences that say all of the following, and nothing else: {slots}."

coverage = slot_coverage
missing = missing_slots


def problems(dataset: Dataset) -> Dataset:
    """
    One row per list of slots: `prompt` (a message), `meaning_representation` and `references` (people's texts).

    Args:
        dataset ([`~datasets.Dataset`]):
            A split: `meaning_representation` and `human_reference` or `target`, as on the Hub, or `mr` and `ref`.

    Raises:
        BadInput: If the columns are others.
    """
    slots, texts = published_columns(
        dataset,
        "E2E",
        ("meaning_representation", "human_reference"),
        ("meaning_representation", "target"),
        ("mr", "ref"),
    )
    references: dict[str, list[str]] = {}
    for row in dataset.select_columns([slots, texts]):
        references.setdefault(row[slots], []).append(row[texts])
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": INSTRUCTION.format(slots=meaning)}],
                "meaning_representation": meaning,
                "references": told,
            }
            for meaning, told in references.items()
        ]
    )


def table(
    prompts: list, samples: list[list[str]], fluency_model: str | None = None, device: str = "auto", **columns: list
) -> dict[str, list[float | None]]:
    """
    The columns of the paper's table, for `table_function`: as [`~correction_trl.tasks.commongen.table`], of slots.

    Args:
        prompts (`list`):
            The problems.
        samples (`list[list[str]]`):
            The texts of each problem.
        fluency_model (`str`, *optional*):
            Hub id or folder of the reference model; without one there is no such column.
        device (`str`, *optional*, defaults to `"auto"`):
            Where it runs; by default on the GPU where there is one.
        **columns (`list`):
            `meaning_representation`.

    Returns:
        `dict[str, list[float | None]]`: By name one number per problem.
    """
    return coverage_table(coverage, prompts, samples, fluency_model, device, columns)
