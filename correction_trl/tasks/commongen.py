"""
CommonGen: one sentence that uses all of the given words ([paper](https://huggingface.co/papers/1911.03705)).
Constrained generation in [Self-Correct](https://huggingface.co/papers/2211.00053).

Data: `allenai/common_gen` on the Hub, or a JSON-lines file of the early release (`concept_set`, `scene`). Value: the
share of the words that the sentence has; feedback: those that are missing.
"""

from datasets import Dataset

from ..data_utils import published_columns
from ..rewards.constraints import concept_coverage, concept_list, missing_concepts


__all__ = ["INSTRUCTION", "coverage", "missing", "problems"]

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
