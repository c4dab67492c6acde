"""Files and streams of responses, one JSON object with `prompt` and `response` per line."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..carry_addition import embedded_path
from ..errors import BadInput
from ..policy.generation import Sampler
from ..policy.tokenization import tokenize_prompt


def read_responses(lines: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    """
    The objects of a stream, each as its line comes.

    Args:
        lines (`Iterable[str]`):
            The stream; empty lines are skipped.
        name (`str`):
            What a message calls it.

    Raises:
        BadInput: If a line is no JSON, or lacks `prompt` or `response`; the message names the line.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise BadInput(f"{name}, line {number} is no JSON ({error}); correct or remove it.") from None
        missing = [key for key in ("prompt", "response") if not isinstance(row, dict) or not row.get(key)]
        if missing:
            raise BadInput(f"{name}, line {number} has no {missing[0]!r}; correct or remove it.")
        yield row


def open_input(name: str | None) -> tuple[AbstractContextManager[Iterable[str]], str]:
    """The lines of a file, of standard input (`-`), or of the embedded model; and what a message calls them."""
    if name is None:
        return nullcontext(embedded_responses()), "the embedded problems"
    if name == "-":
        return nullcontext(sys.stdin), "stdin"
    if not Path(name).is_file():
        raise BadInput(f"`input={name!r}` is no file.")
    return open(name, encoding="utf-8"), name


def open_output(name: str) -> tuple[AbstractContextManager[TextIO], int]:
    """A file to be appended to, or standard output (`-`); and how many whole lines of an earlier run it holds. A line
    that was cut off by a kill is removed."""
    if name == "-":
        return nullcontext(sys.stdout), 0
    path = Path(name)
    try:
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            path.write_bytes(whole)
        return open(path, "a", encoding="utf-8"), whole.count(b"\n")
    except OSError as error:
        raise BadInput(f"`output={name!r}` cannot be written to: {error.strerror}.") from None


def corrected_batches(
    rows: Iterable[dict[str, Any]], correct: Callable, batch_size: int, seed: int
) -> Iterator[list[dict[str, Any]]]:
    """
    Correct the responses of a stream, batch by batch.

    Args:
        rows (`Iterable[dict]`):
            With `prompt` and `response`; columns that all rows of a batch have go to the functions.
        correct (`Callable`):
            [`correct_iteratively`] with its model and settings.
        batch_size (`int`):
            Rows that are read before the first of them is answered.
        seed (`int`):
            Of the first row; each batch has its own.

    Yields:
        `list[dict]`: The rows, with `corrected` (the last response), `corrections` (all but the first) and `stop`.
    """
    rows = iter(rows)
    while batch := list(islice(rows, batch_size)):
        shared = set.intersection(*(set(row) for row in batch)) - {"prompt", "response"}
        columns = {key: [row[key] for row in batch] for key in sorted(shared)}
        prompts, responses = [row["prompt"] for row in batch], [row["response"] for row in batch]
        traces = correct(prompts, responses, columns, batch_size=batch_size, seed=seed)
        yield [
            row | {"corrected": trace.responses[-1], "corrections": trace.responses[1:], "stop": trace.stop}
            for row, trace in zip(batch, traces, strict=True)
        ]
        seed += len(batch)


def embedded_responses(n: int = 20) -> list[str]:
    """Lines with responses of the embedded model to problems of the embedded task."""
    name = embedded_path("tiny-carry-chat")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    problems = load_dataset(embedded_path("carry_addition"), split=f"validation[:{n}]")
    prompt_ids = [tokenize_prompt(tokenizer, prompt)[1] for prompt in problems["prompt"]]
    responses = Sampler(model, tokenizer, max_new_tokens=16, temperature=0)(prompt_ids).texts
    return [json.dumps({**row, "response": text}) for row, text in zip(problems, responses, strict=True)]
