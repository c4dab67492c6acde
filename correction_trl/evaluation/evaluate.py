"""What a strategy of correction did, judged: traces in, an [`Evaluation`] out."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset

from ..data_utils import NOT_FOR_THE_TEACHER, dataset_problem_ids
from ..errors import BadInput
from ..functions import Prompt, call_table_function, call_value_function
from ..inference.answers import whole_text
from ..inference.strategy import Trace
from .metrics import attempt_metrics, edit_distance_ratio, is_rate, paired_difference, summarize


logger = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """
    What an evaluation found.

    Attributes:
        metrics (`dict[str, dict]`):
            Per metric its mean over problems, 95 % interval and number of problems: `{"mean", "low", "high",
            "n"}`.
        per_problem (`dict[str, list[float | None]]`):
            The same metrics per problem, in the order of the dataset; `None` where a problem could not be judged.
        examples (`list[dict]`):
            `prompt`, `response` and `correction` of some problems whose response needed one; of attempts, the first
            and the last, and all of them as `attempts` with their `right`.
        counts (`dict[str, int]`):
            Of attempts: how many `responses` there were, and how many of them were `unparsable` (counted as wrong) or
            `unjudged` (left out); how many replies were `truncated`; how many problems' samples are `missing` (left
            out); and how often a strategy stopped for which reason.
        right (`list[list[list[float | None]]]`):
            Of attempts: whether each is right, by problem, sample and attempt.
        problems (`list[int | str]`):
            What the problems are called: their `id`, or their numbers in the dataset.
        table (`list[str]`):
            Those of the metrics that a `table_function` measured: the columns of a paper's table.
    """

    metrics: dict[str, dict[str, float]]
    per_problem: dict[str, list[float | None]]
    examples: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)
    right: list[list[list[float | None]]] = field(default_factory=list)
    problems: list[int | str] = field(default_factory=list)
    table: list[str] = field(default_factory=list)


def compare(before: Evaluation, after: Evaluation, keys: Iterable[str] | None = None) -> dict[str, dict[str, float]]:
    """The summaries of `after - before` on the same problems, for the given metrics (by default all of `after`)."""
    return {
        key: paired_difference(before.per_problem[key], after.per_problem[key], rate=is_rate(key))
        for key in (after.metrics if keys is None else keys)
    }


def evaluate_traces(
    dataset: Dataset,
    traces: Mapping[tuple[int, int], Trace],
    value_function: Callable,
    n_examples: int = 8,
    correct_threshold: float = 1.0,
    extract_answer: Callable[[str], str | None] = whole_text,
    n_turns: int = 1,
    table_function: Callable[..., dict[str, list[float | None]]] | None = None,
) -> Evaluation:
    """
    Judge what a strategy of [`inference`] did.

    The keys, as fractions of all problems: `acc@t1`, ..., `acc@tk` (the response after each attempt is right; a
    strategy that stopped early keeps its last one), `delta(t1,t2)`, `delta(i->c)`, `delta(c->i)`, `fix_rate` and the
    same with `@t3`, ... for later attempts (see [`~metrics.attempt_metrics`]); `edit_distance_ratio` and
    `answer_changed` between the first response and the second (a warning of collapse if they go to 0); `tokens@t1`,
    ..., `tokens` (generated for each attempt, and in all); `responses/unparsable`, `responses/truncated`,
    `responses/unjudged`.

    A response without an answer that can be parsed is wrong, whatever its value. A response that the value function
    cannot judge (`None`) is neither right nor wrong: its sample is left out of the accuracies and of what follows from
    them, and is counted.

    All processes of a distributed run judge their own traces and get the same result.

    Args:
        dataset ([`~datasets.Dataset`]):
            Column `prompt`, and whatever the value function needs.
        traces (`dict[tuple[int, int], Trace]`):
            This process's traces by row and sample. Problems of no process's traces are not judged. Each gets its
            gold answer and whether its responses are right, for a [`TraceStore`] to keep.
        value_function, n_examples, correct_threshold, extract_answer:
            See [`evaluate_attempts`].
        n_turns (`int`, *optional*, defaults to `1`):
            Report at least so many attempts, also where no trace has as many.
        table_function (`Callable`, *optional*):
            Measures what right and wrong do not say, such as the columns of a paper's table: called as
            `table_function(prompts, samples, **columns)` with a list of texts per problem, one of each sample, and
            returns one number per problem (`None`: not measured) by name. It is called for the first attempts
            (`NAME@t1`) and for the last ones (`NAME@tk`), by one process.

    Returns:
        [`Evaluation`].

    Raises:
        BadInput: If the value function, the extractor or the table function is at fault.
    """
    records = judge_traces(dataset, traces, value_function, extract_answer, correct_threshold)
    return summarize_records(dataset, records, n_examples, n_turns, table_function)


def judge_traces(
    dataset: Dataset,
    traces: Mapping[tuple[int, int], Trace],
    value_function: Callable,
    extract_answer: Callable[[str], str | None],
    correct_threshold: float,
) -> list[dict[str, Any]]:
    """
    Per trace whether its responses are right; the trace gets its gold answer and the verdicts. A problem's equal
    responses are judged once.
    """
    if not traces:
        return []
    distinct = list(dict.fromkeys((row, text) for (row, _), trace in traces.items() for text in trace.responses))
    rows = [row for row, _ in distinct]
    batch = dataset[rows]
    columns = {key: values for key, values in batch.items() if key not in NOT_FOR_THE_TEACHER}
    values = call_value_function(value_function, batch["prompt"], [text for _, text in distinct], columns)
    answers = dict(zip((text for _, text in distinct), extract_answers(extract_answer, distinct), strict=True))
    # Value functions with a gold answer of another name say so, as `rewards.FinalAnswer` does
    gold_column = getattr(value_function, "gold_column", "answer")
    golds = dict(zip(rows, columns[gold_column], strict=True)) if gold_column in columns else {}
    right = {}
    for (row, text), value in zip(distinct, values, strict=True):
        verdict = None if value is None else float(value >= correct_threshold)
        right[row, text] = 0.0 if answers[text] is None else verdict
    records = []
    for (row, sample), trace in traces.items():
        trace.gold, trace.right = golds.get(row), [right[row, text] for text in trace.responses]
        texts = [answers[text] for text in trace.responses]
        records.append({"key": (row, sample), "trace": trace, "right": trace.right, "answers": texts})
    return records


def extract_answers(
    extract_answer: Callable[[str], str | None], responses: Iterable[tuple[int, str]]
) -> list[str | None]:
    """
    The answers in responses.

    Args:
        extract_answer (`Callable`):
            From the text of a response to its answer, `None` if there is none.
        responses (`Iterable[tuple[int, str]]`):
            Row and text of each.

    Raises:
        BadInput: If an answer is no text: an extractor that always returns an object finds an answer everywhere.
    """
    answers = []
    for row, text in responses:
        answer = extract_answer(text)
        if answer is not None and not isinstance(answer, str):
            name = getattr(extract_answer, "__name__", type(extract_answer).__name__)
            raise BadInput(
                f"`extract_answer` ({name}) returned {type(answer).__name__} for a response to row {row}; it has to "
                "return the answer as text, or None where there is none (such as "
                "`correction_trl.rewards:gsm8k_answer`)."
            )
        answers.append(answer)
    return answers


def summarize_records(
    dataset: Dataset,
    records: list[dict[str, Any]],
    n_examples: int,
    n_turns: int,
    table_function: Callable[..., dict[str, list[float | None]]] | None = None,
) -> Evaluation:
    """Puts together what all processes found."""
    if PartialState().num_processes > 1:
        records = gather_object(records)
    if not records:
        raise BadInput("There is nothing to evaluate: no problem has a response.")
    by_key = {record["key"]: record for record in records}
    n_turns = max(n_turns, *(len(record["right"]) for record in records))
    n_samples = 1 + max(sample for _, sample in by_key)
    right, measured = [], {name: [] for name in _measure(records[0], n_turns)}
    for row in range(len(dataset)):
        samples = [by_key.get((row, sample)) for sample in range(n_samples)]
        right.append([_filled(record["right"], n_turns) if record else [None] * n_turns for record in samples])
        values = [_measure(record, n_turns) for record in samples if record]
        for name, column in measured.items():
            column.append(sum(value[name] for value in values) / len(values) if values else None)
    metrics, per_problem = attempt_metrics(right)
    table = {} if table_function is None else _table(dataset, by_key, n_turns, table_function)
    if taken := sorted(table.keys() & (measured.keys() | metrics.keys())):
        raise BadInput(f"The table function's column {taken[0]!r} has the name of another metric; give it its own.")
    measured |= table
    metrics |= {name: summarize(values, rate=is_rate(name)) for name, values in measured.items()}
    changed = sorted(by_key, key=lambda key: (len(set(by_key[key]["right"])) == 1, key))
    return Evaluation(
        metrics=metrics,
        per_problem=per_problem | measured,
        examples=[_example(dataset[row]["prompt"], by_key[row, sample]) for row, sample in changed[:n_examples]],
        counts=_count(records, missing=len(dataset) * n_samples - len(by_key)),
        right=right,
        problems=dataset_problem_ids(dataset),
        table=list(table),
    )


def _table(
    dataset: Dataset, by_key: Mapping[tuple[int, int], dict[str, Any]], n_turns: int, table_function: Callable
) -> dict[str, list[float | None]]:
    """What a table function measures on first and last attempts, by problem; the main process tells the others."""
    found = [{}]
    if PartialState().is_main_process:
        rows = sorted({row for row, _ in by_key})
        batch = dataset[rows]
        columns = {key: values for key, values in batch.items() if key not in NOT_FOR_THE_TEACHER}
        for turn in dict.fromkeys((1, n_turns)):
            samples: dict[int, list[str]] = {row: [] for row in rows}
            for (row, _), record in sorted(by_key.items()):
                samples[row].append(_filled(record["trace"].responses, n_turns)[turn - 1])
            values = call_table_function(table_function, batch["prompt"], list(samples.values()), columns)
            for name, column in values.items():
                of_rows = dict(zip(rows, column, strict=True))
                found[0][f"{name}@t{turn}"] = [of_rows.get(row) for row in range(len(dataset))]
    if PartialState().num_processes > 1:
        found = broadcast_object_list(found)
    return found[0]


def _filled(values: list, n_turns: int) -> list:
    """A strategy that stopped early keeps its last response."""
    return values + values[-1:] * (n_turns - len(values))


def _count(records: list[dict[str, Any]], missing: int) -> dict[str, int]:
    counts = {
        "responses": sum(len(record["right"]) for record in records),
        "unparsable": sum(answer is None for record in records for answer in record["answers"]),
        "unjudged": sum(verdict is None for record in records for verdict in record["right"]),
        "truncated": sum(record["trace"].cut_off for record in records),
        "missing": missing,
    }
    if counts["unparsable"] or counts["unjudged"]:
        logger.warning(
            "Of %d responses, %d hold no answer that can be parsed (counted as wrong); %d were not judged (left out).",
            counts["responses"], counts["unparsable"], counts["unjudged"],
        )  # fmt: skip
    stops = Counter(record["trace"].stop for record in records if record["trace"].stop)
    return counts | {f"stop: {reason}": count for reason, count in sorted(stops.items())}


def _measure(record: dict[str, Any], n_turns: int) -> dict[str, float]:
    """What is measured on one trace beside right and wrong."""
    trace = record["trace"]
    responses, answers = _filled(trace.responses, n_turns), _filled(record["answers"], n_turns)
    tokens = trace.tokens + [0] * (n_turns - len(trace.tokens))
    measured = {}
    if n_turns > 1:
        measured["edit_distance_ratio"] = edit_distance_ratio(responses[0], responses[1])
        measured["answer_changed"] = float(answers[0] != answers[1])
    measured |= {f"tokens@t{t}": float(count) for t, count in enumerate(tokens, start=1)}
    measured["tokens"] = float(sum(tokens))
    n_responses = len(record["right"])
    measured["responses/unparsable"] = sum(answer is None for answer in record["answers"]) / n_responses
    measured["responses/truncated"] = trace.cut_off / trace.replies
    measured["responses/unjudged"] = sum(verdict is None for verdict in record["right"]) / n_responses
    return measured


def _example(prompt: Prompt, record: dict[str, Any]) -> dict[str, Any]:
    responses = record["trace"].responses
    return {
        "prompt": prompt,
        "response": responses[0],
        "correction": responses[-1] if len(responses) > 1 else None,
        "attempts": responses,
        "right": record["right"],
    }
