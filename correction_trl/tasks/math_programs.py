"""
Math problems solved by a Python program: MultiArith ([paper](https://huggingface.co/papers/1608.01413)) and GSM8K
([paper](https://huggingface.co/papers/2110.14168)), as in [Self-Correct](https://huggingface.co/papers/2211.00053).

Data: `openai/gsm8k` (`question`, `answer`) or `ChilleD/MultiArith` (`question`, `final_ans`) on the Hub, or a file
with `input` and `target`. Value: 1 if the program, run in the sandbox, computes the right number; feedback: the error
or the value that it gave (which needs the right number), or a hint that a larger model writes.
"""

from datasets import Dataset

from ..chat_server import ChatServer, Request
from ..data_utils import published_columns
from ..errors import BadInput
from ..rewards.code_extraction import extract_code
from ..rewards.common import completion_text, read_column
from ..rewards.math_program import math_program_accuracy, math_program_feedback, program_value
from ..sandbox import Job, LocalSandbox


__all__ = ["HINT_EXAMPLES", "HINT_PROMPT", "accuracy", "computed", "problems", "prompted_hint", "what_went_wrong"]

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


def prompted_hint(
    prompts: list,
    completions: list,
    model: str = "",
    base_url: str = "http://localhost:8000/v1",
    temperature: float = 0.0,
    max_tokens: int = 128,
    concurrency: int = 32,
    api_key_variable: str = "SERVER_API_KEY",
    **columns: list,
) -> list[str | None]:
    """
    Feedback function: a hint by a larger model behind an OpenAI-compatible server, after three examples, as the paper
    prompted GPT-3. The model sees the problem and the program, and neither the right number nor what the program
    computes, so that it is no oracle at test time.

    Args:
        prompts (`list`), completions (`list`):
            The problems and the responses to them.
        model (`str`):
            Name of the model, as the server knows it.
        base_url (`str`, *optional*, defaults to `"http://localhost:8000/v1"`):
            Address up to, and without, `/chat/completions`.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature.
        max_tokens (`int`, *optional*, defaults to `128`):
            Most tokens of a hint.
        concurrency (`int`, *optional*, defaults to `32`):
            Most requests at a time.
        api_key_variable (`str`, *optional*, defaults to `"SERVER_API_KEY"`):
            Environment variable that holds the API key; without one, none is sent.
        **columns (`list`):
            `question`.

    Returns:
        `list[str | None]`: One hint per response; `None` where the server gave none. Equal programs are asked about
        once.

    Raises:
        BadInput: If no model is named.
        ServerFailed: If the server is down, refuses the key, or does not know the model.
    """
    if not model:
        raise BadInput(
            "Who writes the hints? Set `feedback_settings: {model: NAME, base_url: http://localhost:8000/v1}`."
        )
    questions = read_column("question", "prompted_hint", columns, len(completions))
    asked = [(q, extract_code(completion_text(c)).strip()) for q, c in zip(questions, completions, strict=True)]
    examples = []
    for question, program, hint in HINT_EXAMPLES:
        examples += [{"role": "user", "content": _shown(question, program)}, {"role": "assistant", "content": hint}]
    requests = [
        Request(
            [*examples, {"role": "user", "content": _shown(*item)}],
            {"temperature": temperature, "max_tokens": max_tokens},
            subject=item,
        )
        for item in dict.fromkeys(asked)
    ]
    hints: dict[tuple[str, str], str | None] = {}

    def take(answered):
        hints.update({request.subject: None if reply.problem else reply.text for request, reply in answered})

    server = ChatServer(model, base_url, concurrency=concurrency, api_key_variable=api_key_variable)
    server.ask(requests, take)
    return [hint.strip() if (hint := hints[item]) else None for item in asked]


def _shown(question: str, program: str) -> str:
    return f"{HINT_PROMPT}\n\nProblem: {question}\n\nProgram:\n```python\n{program}\n```"
