"""
CommonsenseQA: questions with five choices ([paper](https://huggingface.co/papers/1811.00937)). Commonsense reasoning
in [ProCo](https://huggingface.co/papers/2405.14092).

Data: `tau/commonsense_qa` on the Hub, or the JSON-lines file of its authors. The test split has no answers. Value: the
letter. ProCo hides a phrase of the question (`kind: concept`) and names an answer by the text of its choice
(`choices_column: choices`), since a letter says nothing in a verification.
"""

from datasets import Dataset

from ..data_utils import published_columns
from ..errors import BadInput
from ..inference.answers import multiple_choice
from ..rewards.final_answer import FinalAnswer


__all__ = ["INSTRUCTION", "answer", "choice_accuracy", "problems"]

HUB_ID = "tau/commonsense_qa"
INSTRUCTION = "{question}\n\n{choices}\n\nThink step by step. End with: The answer is (letter)."

answer = multiple_choice
choice_accuracy = FinalAnswer(style="choice", gold_column="answer")


def problems(dataset: Dataset) -> Dataset:
    """
    One row per question: `prompt` (a message), `question`, `choices` (a list of texts), `answer` (a letter).

    Args:
        dataset ([`~datasets.Dataset`]):
            A split with `question`, `choices` (`label`, `text`) and `answerKey`, as on the Hub; or with `question`
            (`stem`, `choices`) and `answerKey`.

    Raises:
        BadInput: If the columns are others, or a row has no answer or choices with other letters.
    """
    published_columns(dataset, "CommonsenseQA", ("question", "choices", "answerKey"), ("question", "answerKey"))
    rows = []
    for number, row in enumerate(dataset):
        question, choices = row["question"], row.get("choices")
        if isinstance(question, dict):
            question, choices = question.get("stem"), question.get("choices")
        if isinstance(choices, list):
            choices = {key: [choice.get(key) for choice in choices] for key in ("label", "text")}
        labels, texts = (choices or {}).get("label"), (choices or {}).get("text")
        if not labels or list(labels) != list("ABCDEFGH"[: len(labels)]) or len(texts or []) != len(labels):
            raise BadInput(f"row {number} has no choices with the letters A, B, ... and their texts.")
        if row["answerKey"] not in labels:
            raise BadInput(
                f"row {number} has no answer (`answerKey` is {row['answerKey']!r}); the test split has none, use "
                "validation."
            )
        listed = "\n".join(f"({label}) {text}" for label, text in zip(labels, texts, strict=True))
        prompt = [{"role": "user", "content": INSTRUCTION.format(question=question, choices=listed)}]
        rows.append({"prompt": prompt, "question": question, "choices": list(texts), "answer": row["answerKey"]})
    return Dataset.from_list(rows)
