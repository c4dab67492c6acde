r"""
MATH: competition problems with a final answer ([paper](https://huggingface.co/papers/2103.03874)), on which
[SCoRe](https://huggingface.co/papers/2409.12917) trains and is measured.

Data: `EleutherAI/hendrycks_math` (a configuration per subject) or `HuggingFaceH4/MATH-500` on the Hub, or a JSON file
of either form. Value: 1 if the final answer means the same as the right one (`\frac{1}{2}` is 0.5).
"""

from datasets import Dataset

from ..data_utils import published_columns
from ..inference.answers import final_answer
from ..rewards.final_answer import FinalAnswer


__all__ = ["FORMAT", "INSTRUCTION", "accuracy", "answer", "problems"]

FORMAT = "At the end, give the answer in this form: Final Answer: The final answer is $answer$. I hope it is correct."
# SCoRe's, with a sentence on the form of the answer
INSTRUCTION = (
    "There might be an error in the solution above because of lack of understanding of the question. Please correct "
    f"the error, if any, and rewrite the solution. Only output the final solution! {FORMAT}"
)
PROMPT = "You are an expert in mathematics. Solve this problem step by step. {form}\n\n{problem}"

answer = final_answer
accuracy = FinalAnswer()


def problems(dataset: Dataset) -> Dataset:
    r"""
    One row per problem: `prompt` (a message), `answer` (the final answer, or the solution that holds it in
    `\boxed{...}`), and, where the data have them, `level` and `unique_id`.

    Args:
        dataset ([`~datasets.Dataset`]):
            A split with `problem`, and `answer` or `solution`.

    Raises:
        BadInput: If the columns are others.
    """
    gold = published_columns(dataset, "MATH", ("problem", "answer"), ("problem", "solution"))[1]
    more = [name for name in ("level", "unique_id") if name in dataset.column_names]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": PROMPT.format(form=FORMAT, problem=row["problem"])}],
                "answer": row[gold],
                **{name: row[name] for name in more},
            }
            for row in dataset
        ]
    )
