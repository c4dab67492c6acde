"""
Python programs that must pass tests: MBPP ([paper](https://huggingface.co/papers/2108.07732)), on which
[SCoRe](https://huggingface.co/papers/2409.12917) trains, and HumanEval
([paper](https://huggingface.co/papers/2107.03374)), on which it is measured.

Data: `google-research-datasets/mbpp` and `openai/openai_humaneval` on the Hub, or their JSON-lines files. Value: 1 if
the program passes all tests, in the sandbox; feedback: the first that fails. One value function judges both kinds of
rows, so that a run can train on one and be evaluated on the other.
"""

from datasets import Dataset

from ..data_utils import published_columns
from ..rewards.code_tests import CodeTests, humaneval_tests, mbpp_tests


__all__ = ["INSTRUCTION", "failure", "passes", "problems"]

# SCoRe's, with its sentence on the form of the answer
INSTRUCTION = (
    "There might be an error in the code above because of lack of understanding of the question. Please correct the "
    "error, if any, and rewrite the solution. Only output the final correct Python program!"
)
MBPP_PROMPT = "{text}\nThe program must pass these tests:\n\n{tests}\n\nOnly output the Python program."
HUMANEVAL_PROMPT = "Complete this function. Only output the Python program.\n\n```python\n{code}```"


def problems(dataset: Dataset) -> Dataset:
    """
    One row per problem: `prompt` (a message) and what its tests need. MBPP: `test_list`, `test_imports`; HumanEval:
    `code_prompt`, `test`, `entry_point`; and, where the data have them, `task_id` and `first_attempt` (for the
    strategy `repair`).

    Args:
        dataset ([`~datasets.Dataset`]):
            A split of MBPP (`text` or, where it is sanitized, `prompt`) or of HumanEval.

    Raises:
        BadInput: If the columns are those of neither.
    """
    kind = published_columns(
        dataset,
        "MBPP or HumanEval",
        ("prompt", "test", "entry_point"),
        ("text", "test_list"),
        ("prompt", "test_list"),
    )
    more = [name for name in ("task_id", "first_attempt") if name in dataset.column_names]
    rows = []
    for row in dataset:
        if "entry_point" in kind:
            content = HUMANEVAL_PROMPT.format(code=row["prompt"])
            needed = {"code_prompt": row["prompt"], "test": row["test"], "entry_point": row["entry_point"]}
        else:
            content = MBPP_PROMPT.format(text=row[kind[0]], tests="\n".join(row["test_list"]))
            needed = {"test_list": row["test_list"], "test_imports": _imports(row)}
        rows.append({"prompt": [{"role": "user", "content": content}], **needed, **{name: row[name] for name in more}})
    return Dataset.from_list(rows)


def _imports(row: dict) -> list[str]:
    """What a row of MBPP runs before its tests; the whole data have one text, the sanitized ones a list."""
    setup = row.get("test_setup_code") or row.get("test_imports") or []
    return [setup] if isinstance(setup, str) else list(setup)


def passes(completions: list, **columns) -> list[float | None]:
    """Value function: 1 if a program passes all of its tests, else 0; `None` where the tests cannot judge."""
    return _tests(columns)(completions, **columns)


def failure(completions: list, **columns) -> list[str]:
    """Feedback: the first test that fails, with the call and a short traceback."""
    return _tests(columns).feedback(completions, **columns)


def _tests(columns: dict) -> CodeTests:
    return humaneval_tests if "entry_point" in columns else mbpp_tests
