"""
Open-domain questions: [ProCo](https://huggingface.co/papers/2405.14092) on NaturalQuestions, TriviaQA, WebQuestions
and HotpotQA, from a document that the model writes itself (GenRead) or from passages that a function of yours finds.

Data: `google-research-datasets/nq_open`, `mandarjoshi/trivia_qa` (`rc.nocontext`), `stanfordnlp/web_questions` or
`hotpotqa/hotpot_qa` (`distractor`, `fullwiki`) on the Hub, or the JSON-lines files of GenRead (`question`, `answer`).
Value: SQuAD's exact match against the best of the right answers; the table adds F1 and the looser count of ProCo.
"""

from datasets import Dataset

from ..data_utils import published_columns
from ..errors import BadInput
from ..evaluation.measures import mean_of, values_of_samples
from ..rewards.short_answers import (
    ShortAnswer,
    gold_answers,
    short_answer,
    short_answer_contains,
    short_answer_exact,
    short_answer_f1,
)


__all__ = ["INSTRUCTION", "answer", "exact_match", "f1", "problems", "table"]

INSTRUCTION = "{question}\n\nAnswer with just one name, date or phrase. End with: The answer is (your answer)."

answer = short_answer
exact_match = short_answer_exact
f1 = short_answer_f1


def problems(dataset: Dataset) -> Dataset:
    """
    One row per question: `prompt` (a message), `question`, `answer` (a list of the right answers, aliases included).

    Args:
        dataset ([`~datasets.Dataset`]):
            A split with `question` and `answer` (a text, a list of texts, or TriviaQA's dict), or with `question` and
            `answers`.

    Raises:
        BadInput: If the columns are others, or a row has no right answer.
    """
    _, gold = published_columns(dataset, "open-domain questions", ("question", "answer"), ("question", "answers"))
    rows = []
    for number, row in enumerate(dataset.select_columns(["question", gold])):
        try:
            right = list(dict.fromkeys(gold_answers(row[gold])))
        except ValueError as error:
            raise BadInput(f"row {number}, {gold!r}: {error}") from None
        if not right:
            raise BadInput(
                f"row {number} has no right answer in {gold!r}; use a split with answers (the test splits of TriviaQA "
                "and HotpotQA have none), or leave the row out."
            )
        prompt = [{"role": "user", "content": INSTRUCTION.format(question=row["question"])}]
        rows.append({"prompt": prompt, "question": row["question"], "answer": right})
    return Dataset.from_list(rows)


def table(prompts: list, samples: list[list[str]], answer: list, **columns) -> dict[str, list[float | None]]:
    """
    For `table_function`: `f1`, and `contains`, which counts an answer that holds a right one among other words. The
    mean over a problem's samples.
    """

    def mean(value: ShortAnswer) -> list[float | None]:
        return [mean_of(values) for values in values_of_samples(value, prompts, samples, {"answer": answer})]

    return {"f1": mean(short_answer_f1), "contains": mean(short_answer_contains)}
