"""Responses out to, and corrections back from, people with an annotation tool of their own: JSONL, one object a line,
and records as Argilla writes and reads them.

    from correction_trl.teachers import read_annotations, write_argilla, write_jsonl

    write_jsonl(items, "to_correct.jsonl")      # or write_argilla(items, "to_correct.json")
    store.add(read_annotations("corrected.jsonl"))

**JSONL**: `key`, `prompt`, `response`, `correction` (to be filled in; `null`: not answered yet), `status` and
`annotator` (both may stay `null`), and the dataset's further columns. A correction equal to the response says that it
is right as it is; the status `"skipped"` that nobody could tell.

**Argilla**: `Dataset.records.to_json` and `.from_json` of argilla 2: fields `prompt` and `response`, a text question
`correction` with the response as suggestion to start from. The rows of `to_list(flatten=True)` are read too, as a JSON
list or as JSONL; they alone say which answers are drafts or were discarded (in `to_json` of argilla 2.8 every answer
counts).
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .human import TEACHER
from .store import CORRECTED, SKIPPED, UNCHANGED, Correction, correction_key


_OWN_COLUMNS = ("key", "prompt", "response", "correction", "status", "annotator")
_ARGILLA_COLUMNS = (*_OWN_COLUMNS, "id", "_server_id", "vectors", "score")
_STATUSES = (CORRECTED, UNCHANGED, SKIPPED)


def write_jsonl(items: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """
    Write responses to correct, one JSON object a line.

    Args:
        items (`Sequence[dict]`):
            `{"key": str, "prompt": str | list[dict], "response": str, "columns": dict}` each, as
            [`~correction_trl.teachers.ask_people`] takes them.
        path (`str` or `Path`):
            The file; must not exist.

    Raises:
        BadInput: If the file exists, or a row has a column that the format uses itself, or no JSON form.
    """
    lines = []
    for row, item in enumerate(items):
        taken = sorted(item["columns"].keys() & set(_OWN_COLUMNS))
        if taken:
            raise BadInput(f"Row {row}: rename the column {taken[0]!r}; the file has a column of that name itself.")
        own = {"key": item["key"], "prompt": item["prompt"], "response": item["response"], "correction": None}
        lines.append(_to_json({**own, "status": None, "annotator": None, **item["columns"]}, row))
    _write(path, "".join(f"{line}\n" for line in lines))


def write_argilla(items: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """
    Write responses to correct as a JSON list of records that argilla's `Dataset.records.from_json` reads. Further
    columns become metadata.

    Args:
        items (`Sequence[dict]`):
            `{"key": str, "prompt": str | list[dict], "response": str, "columns": dict}` each, as
            [`~correction_trl.teachers.ask_people`] takes them.
        path (`str` or `Path`):
            The file; must not exist.

    Raises:
        BadInput: If the file exists, or a row has no JSON form.
    """
    records = []
    for row, item in enumerate(items):
        record = {
            "id": item["key"],
            "fields": {"prompt": item["prompt"], "response": item["response"]},
            "metadata": dict(item["columns"]),
            "suggestions": {"correction": {"value": item["response"], "score": None, "agent": None}},
            "responses": {},
            "vectors": {},
        }
        records.append(_to_json(record, row))
    _write(path, "[\n" + ",\n".join(records) + "\n]\n")


def read_annotations(path: str | os.PathLike) -> list[Correction]:
    """
    Read what came back, in either format (told apart by what is in the file). Rows without an answer are left out.

    Args:
        path (`str` or `Path`):
            `.jsonl`, or `.json` with one list.

    Returns:
        `list[Correction]`: Ready for `store.add`; the keys are those that `teacher="human"` has.

    Raises:
        BadInput: If the file cannot be read, or a row is wrong; the message names the row and says why. Nothing is
        half read.
    """
    path = Path(path)
    corrections: dict[str, Correction] = {}
    places: dict[str, str] = {}
    for place, row in _rows(path):
        row = _from_argilla(row, place) if _is_argilla(row) else row
        record = _correction(row, place)
        if record is None:
            continue
        earlier = corrections.get(record.key)
        if earlier is not None and (earlier.correction, earlier.status) != (record.correction, record.status):
            raise BadInput(
                f"{place} answers the same response as {places[record.key]}, differently; leave one of them."
            )
        if earlier is None:
            corrections[record.key], places[record.key] = record, place
    return list(corrections.values())


# ------------------------------------------------------------------ files


def _to_json(value: dict, row: int) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"Row {row} has no JSON form ({error}); remove the column with `dataset.remove_columns`."
        ) from None


def _write(path: str | os.PathLike, text: str) -> None:
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8", newline="\n") as file:  # never over somebody's answers
            file.write(text)
    except FileExistsError:
        raise BadInput(f"{path} exists already; name a new file, for there may be answers in it.") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}).") from None


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows, each with its place for messages."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}, line {line}: not UTF-8; save the file as UTF-8.") from None
    if not text.strip():
        raise BadInput(f"{path} is empty.")
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}, line {error.lineno}: no JSON ({error.msg}).") from None
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists in lists in lists
            raise BadInput(f"{path} cannot be read as JSON ({error}).") from None
        places = [f"{path}, record {i} of {len(rows)}" for i in range(1, len(rows) + 1)]
    else:
        # Not `splitlines`, which takes a separator within a text for the end of a line
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        rows, places = [], [f"{path}, line {number}" for number, _ in lines]
        for (_, line), place in zip(lines, places, strict=True):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise BadInput(f"{place}: no JSON ({error.msg}, column {error.colno}).") from None
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{place}: cannot be read as JSON ({error}).") from None
    for place, row in zip(places, rows, strict=True):
        if not isinstance(row, dict):
            raise BadInput(f"{place}: not an object with columns but {type(row).__name__}.")
        yield place, row


# ------------------------------------------------------------------ rows


def _correction(row: dict[str, Any], place: str) -> Correction | None:
    """The answer in a row of JSONL, if there is one."""
    prompt, response, correction, status = (row.get(name) for name in ("prompt", "response", "correction", "status"))
    if correction is None and status is None:
        return None
    if not (isinstance(prompt, str) and prompt) and not (isinstance(prompt, list) and prompt):
        raise BadInput(f"{place}: the prompt is missing, or neither text nor a list of messages.")
    if not isinstance(response, str):
        raise BadInput(f"{place}: the response is missing or no text.")
    _check_answer(correction, status, place)
    if correction is not None:
        status = UNCHANGED if correction == response else CORRECTED
    key = correction_key(prompt, response, teacher=TEACHER)
    if row.get("key") not in (None, key):
        raise BadInput(
            f"{place}: the prompt or the response is not the one that was exported (the key is another one); tools "
            "that trim spaces or line ends do that. Put the exported texts back, or remove the key if the change is "
            "meant."
        )
    annotator = row.get("annotator")
    try:
        _to_json(row, 0).encode()
    except UnicodeEncodeError:
        raise BadInput(f"{place}: a text holds half of a character (a lone surrogate); remove it.") from None
    return Correction(
        key,
        prompt,
        response,
        correction,
        status,
        teacher=TEACHER,
        annotator=None if annotator is None else str(annotator),
        columns={name: value for name, value in row.items() if name not in _OWN_COLUMNS},
    )


def _check_answer(correction: Any, status: Any, place: str) -> None:
    """Whether a correction and a status, of which one may be missing, say one thing."""
    if correction is not None and not isinstance(correction, str):
        raise BadInput(f"{place}: the correction is not text but {type(correction).__name__}.")
    if correction is not None and not correction.strip():
        raise BadInput(
            f"{place}: the correction is empty, which cannot be trained on; write null where there is no answer yet, "
            "or the status 'skipped'."
        )
    if status is not None and status not in _STATUSES:
        raise BadInput(f"{place}: the status {status!r} is none of {', '.join(_STATUSES)}.")
    if correction is None and status in (CORRECTED, UNCHANGED):
        raise BadInput(f"{place}: the status is {status!r}, but there is no correction.")
    if correction is not None and status == SKIPPED:
        raise BadInput(f"{place}: the status is {status!r}, but there is a correction; remove one of the two.")


def _is_argilla(row: dict[str, Any]) -> bool:
    return "fields" in row or any(name.startswith("correction.") for name in row)


def _from_argilla(row: dict[str, Any], place: str) -> dict[str, Any]:
    """An Argilla record, nested or flat, as a row of JSONL."""
    fields, columns, answers = (_parts_of_nested if "fields" in row else _parts_of_flat)(row, place)
    for answer in answers:
        if not isinstance(answer, dict) or not isinstance(answer.get("value"), str | None):
            raise BadInput(f"{place}: an answer to the question 'correction' is no text.")
    # A draft is no answer yet; what people discarded they did not want to answer
    submitted = [a for a in answers if a.get("value") is not None and a.get("status") in (None, "submitted")]
    corrections = list(dict.fromkeys(a["value"] for a in submitted))
    if len(corrections) > 1:
        users = ", ".join(str(a.get("user_id")) for a in submitted)
        raise BadInput(f"{place}: {len(corrections)} different corrections (of the users {users}); leave one of them.")
    discarded = not submitted and any(a.get("status") == "discarded" for a in answers)
    return {
        **{name: value for name, value in columns.items() if name not in _ARGILLA_COLUMNS},
        # An id that argilla made up is no key
        "key": row["id"] if re.fullmatch("[0-9a-f]{64}", str(row.get("id"))) else None,
        "prompt": fields.get("prompt"),
        "response": fields.get("response"),
        "correction": corrections[0] if corrections else None,
        "status": SKIPPED if discarded else None,
        "annotator": submitted[0].get("user_id") if submitted else None,
    }


def _parts_of_nested(row: dict[str, Any], place: str) -> tuple[dict, dict, list]:
    """Fields, further columns and answers of a record as `to_json` writes it."""
    fields, columns, responses = row["fields"], row.get("metadata") or {}, row.get("responses") or {}
    answers = (responses.get("correction") if isinstance(responses, dict) else None) or []
    if not isinstance(fields, dict) or not isinstance(columns, dict) or not isinstance(answers, list):
        raise BadInput(f"{place}: not a record as argilla's `to_json` writes it.")
    return fields, columns, answers


def _parts_of_flat(row: dict[str, Any], place: str) -> tuple[dict, dict, list]:
    """The same of a row of `to_list(flatten=True)`, where an answer is spread over three columns."""
    values, users, statuses = (row.get(f"correction.responses{name}") or [] for name in ("", ".users", ".status"))
    answers = [
        {"value": value, "user_id": user, "status": status}
        for value, user, status in zip_longest(values, users, statuses)
    ]
    return row, {name: value for name, value in row.items() if not name.startswith("correction.")}, answers
