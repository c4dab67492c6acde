"""
Math problems solved by a Python program: MultiArith ([paper](https://huggingface.co/papers/1608.01413)) and GSM8K
([paper](https://huggingface.co/papers/2110.14168)), as in [Self-Correct](https://huggingface.co/papers/2211.00053).

Data: `openai/gsm8k` (`question`, `answer`) or `ChilleD/MultiArith` (`question`, `final_ans`) on the Hub, or a file
with `input` and `target`. Value: 1 if the program, run in the sandbox, computes the right number; feedback: the error
or the value that it gave (which needs the right number), or a hint that a larger model writes.
"""

from datasets import Dataset

from ..data_utils import published_columns
from ..rewards.code_extraction import extract_code
from ..rewards.math_program import math_program_accuracy, math_program_feedback, program_value
from ..sandbox import Job, LocalSandbox


__all__ = ["HINT_EXAMPLES", "HINT_PROMPT", "accuracy", "computed", "problems", "what_went_wrong"]

PROMPT = (
    "Write a Python program that solves this problem and leaves the result in the variable `answer`. Only output the "
    "program.\n\n{question}"
)

accuracy = math_program_accuracy
what_went_wrong = math_program_feedback

# Prompted feedback: a larger model reads problem and program and writes a hint, after three examples
HINT_PROMPT = (
    "A student wrote a Python program for a math problem. In one sentence, say what is wrong with the program and "
    "what to change, without writing the program or its result. If nothing is wrong, write: The program is right."
)
HINT_EXAMPLES = (
    (
        "A baker fills 3 trays with 12 rolls each and sells 20 of the rolls. How many are left?",
        "rolls = 3 + 12\nanswer = rolls - 20",
        "The rolls on all trays are the trays times the rolls of one; multiply them instead of adding them.",
    ),
    (
        "Mia reads 15 pages a day for a week, and then 9 more. How many pages did she read?",
        "pages = 15 * 7\nanswer = pages + 9",
        "The program is right.",
    ),
    (
        "A ticket costs 8 dollars and a child pays half. What do 2 adults and 3 children pay?",
        "adults = 2 * 8\nchildren = 3 * 8\nanswer = adults + children",
        "A child pays half of the price; halve it before it is multiplied by the number of children.",
    ),
)


def problems(dataset: Dataset) -> Dataset:
    """
    One row per problem: `prompt` (a message), `question`, and `answer` (the right number, or a solution that ends in
    `#### N`).

    Args:
        dataset ([`~datasets.Dataset`]):
            A split of GSM8K or MultiArith.

    Raises:
        BadInput: If the columns are others.
    """
    question, gold = published_columns(
        dataset, "GSM8K or MultiArith", ("question", "answer"), ("question", "final_ans"), ("input", "target")
    )
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": PROMPT.format(question=row[question].strip())}],
                "question": row[question].strip(),
                "answer": str(row[gold]),
            }
            for row in dataset
        ]
    )


def computed(response: str) -> str | None:
    """What the program of a response computes, `None` if it fails; for `extract_answer`. It runs in the sandbox."""
    return program_value(LocalSandbox().run([Job(program=extract_code(response))])[0])
