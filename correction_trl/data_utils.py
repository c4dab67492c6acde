"""What a dataset for correction optimization looks like, and one clear sentence about the first row that does not.

Two kinds: **stored pairs** (`prompt`, `response`, `correction`; TRL's `rejected` and `chosen` are accepted in their
place) and **prompts** (`prompt` and whatever a teacher needs). Texts are plain, or conversational: a list of messages;
with a conversational prompt, a response may also be given as plain text. Pairs whose texts a model sampled may carry
the token ids as well (`prompt_ids`, `rejected_ids`, `chosen_ids`), and are then trained on as those.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .errors import BadInput, first_line
from .functions import whole_characters


PAIRS, PROMPTS = "pairs", "prompts"
PAIR_TOKEN_COLUMNS = ("prompt_ids", "rejected_ids", "chosen_ids")
ID_COLUMNS = ("id", "problem_id", "task_id", "unique_id")
IMAGE_COLUMNS = ("image", "images")
# Columns that belong to the prompt; all others are handed to teachers and value functions
NOT_FOR_THE_TEACHER = ("prompt", "tools", "chat_template_kwargs")
_TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
_OWN_NAMES, _TRL_NAMES = ("response", "correction"), ("rejected", "chosen")


def share_of_process(items: Sequence) -> list:
    """This process's share of what all have, in order; shares differ by at most one item."""
    from accelerate import PartialState  # with torch, which a teacher behind a server does without

    state = PartialState()
    size, n_larger = divmod(len(items), state.num_processes)
    start = state.process_index * size + min(state.process_index, n_larger)
    return list(items[start : start + size + (state.process_index < n_larger)])


def dataset_kind(dataset: Dataset | IterableDataset) -> str:
    """`"pairs"` or `"prompts"`, by the columns."""
    columns = _columns(dataset)
    return PAIRS if any(set(names) <= set(columns) for names in (_OWN_NAMES, _TRL_NAMES)) else PROMPTS


def check_dataset(dataset: Dataset | IterableDataset, name: str, teacher: Any = None) -> None:
    """
    Check a dataset before anything expensive happens.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            The dataset. All rows of a map-style one are checked; of a stream, the first.
        name (`str`):
            What the messages call it.
        teacher (*optional*):
            The teacher, if there is one: prompts alone need it.

    Raises:
        TypeError: If it is no dataset.
        BadInput: If it is empty, lacks a column, or a row's prompt, response or correction is empty, missing or not
        text.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(f"`{name}` must be a `datasets.Dataset`, got {type(dataset).__name__}.")
    columns = _columns(dataset)
    if not columns or (isinstance(dataset, Dataset) and len(dataset) == 0):
        raise BadInput(f"`{name}` is empty: it has no rows.")
    kind = dataset_kind(dataset)
    if kind == PROMPTS:
        if "prompt" not in columns:
            raise BadInput(
                f"`{name}` has no column 'prompt'; its columns are {', '.join(columns)}. It needs 'prompt', "
                "'response' and 'correction' (or TRL's 'prompt', 'rejected', 'chosen'), or 'prompt' and a teacher."
            )
        if teacher is None:
            half = next((names for names in (_OWN_NAMES, _TRL_NAMES) if set(names) & set(columns)), None)
            missing = (
                f"the column {next(column for column in half if column not in columns)!r} is missing"
                if half
                else "it has no responses and corrections"
            )
            raise BadInput(
                f"`{name}` cannot be trained on: {missing} (columns: {', '.join(columns)}) and no `teacher` was given."
            )
        for column in ("prompts", "responses", "completions"):
            if column in columns:
                raise BadInput(
                    f"`{name}`: rename the column {column!r}; teachers and value functions get an argument of that "
                    "name."
                )
        checked = ["prompt"]
    else:
        if set(_OWN_NAMES) | set(_TRL_NAMES) <= set(columns):
            raise BadInput(
                f"`{name}` has both 'response' and 'correction' and TRL's 'rejected' and 'chosen'; remove one of the "
                "two."
            )
        names = _OWN_NAMES if set(_OWN_NAMES) <= set(columns) else _TRL_NAMES
        checked = [*(["prompt"] if "prompt" in columns else []), *names]
        if names == _OWN_NAMES and "prompt" not in columns:
            raise BadInput(f"`{name}` has no column 'prompt'; its columns are {', '.join(columns)}.")

    _check_rows(dataset, [*checked, *(column for column in _TEMPLATE_COLUMNS if column in columns)], name)


def _check_rows(dataset: Dataset | IterableDataset, checked: list[str], name: str) -> None:
    if isinstance(dataset, Dataset):
        index = 0
        for batch in dataset.select_columns(checked).with_format(None).iter(batch_size=1000):
            for values in zip(*(batch[column] for column in checked), strict=True):
                _check_row(dict(zip(checked, values, strict=True)), index, name)
                index += 1
    else:
        _check_row({column: next(iter(dataset))[column] for column in checked}, 0, name)


def with_checked_rows(dataset: Dataset | IterableDataset, name: str) -> Dataset | IterableDataset:
    """
    A stream whose rows are checked as they come, as [`check_dataset`] has checked its first, and all rows of a
    map-style dataset, which is returned as it is.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            From [`check_dataset`].
        name (`str`):
            What the messages call it.
    """
    if isinstance(dataset, Dataset):
        return dataset
    checked = [c for c in _columns(dataset) if c in ("prompt", *_OWN_NAMES, *_TRL_NAMES, *_TEMPLATE_COLUMNS)]

    def check(row, index):
        _check_row({column: row.get(column) for column in checked}, index, name)
        return row

    return dataset.map(check, with_indices=True)


def to_preference_columns(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Give stored pairs TRL's column names and formats: `rejected` is the response, `chosen` the correction, both
    lists of messages where the prompt is."""
    columns = _columns(dataset)
    for own, trl in zip(_OWN_NAMES, _TRL_NAMES, strict=True):
        if own in columns and trl not in columns:
            dataset = dataset.rename_column(own, trl)
    first = next(iter(dataset))
    if "prompt" not in first:
        dataset = dataset.map(_with_prompt_of_its_own, with_indices=True)
        first = next(iter(dataset))
    elif any(isinstance(first[column], list) for column in _TRL_NAMES):

        def without_the_prompt(row):
            """A prompt as messages, and completions that begin after it: many datasets repeat the conversation."""
            prompt = row["prompt"]
            return {
                "prompt": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
                **{column: _after_prompt(row[column], prompt) for column in _TRL_NAMES},
            }

        if isinstance(dataset, Dataset):
            features = dataset.features.copy()
            features["prompt"] = next(dataset.features[c] for c in _TRL_NAMES if isinstance(first[c], list))
            dataset = (
                dataset.map(without_the_prompt, features=features)
                if isinstance(first["prompt"], str)
                else (dataset.map(without_the_prompt))
            )
        else:
            dataset = dataset.map(without_the_prompt)
        first = next(iter(dataset))
    if isinstance(first.get("prompt"), list) and any(isinstance(first[column], str) for column in _TRL_NAMES):

        def as_messages(row):
            return {
                column: [{"role": "assistant", "content": row[column]}]
                if isinstance(row[column], str)
                else row[column]
                for column in _TRL_NAMES
            }

        dataset = dataset.map(as_messages)
    return dataset


def _after_prompt(completion: Any, prompt: Any) -> Any:
    """The messages of a completion that come after the prompt, where it begins with the prompt's."""
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    n = len(prompt)
    repeats = isinstance(completion, list) and len(completion) > n and completion[:n] == prompt
    return completion[n:] if repeats else completion


def _with_prompt_of_its_own(row: dict[str, Any], index: int) -> dict[str, Any]:
    """What `chosen` and `rejected` have in common at their beginning becomes the prompt, as in TRL."""
    from trl import extract_prompt  # with torch, which a teacher behind a server does without

    chosen, rejected = row["chosen"], row["rejected"]
    if chosen == rejected or type(chosen) is not type(rejected):
        raise BadInput(
            f"Row {index}: without a column 'prompt', `chosen` and `rejected` must be two texts, or two "
            "conversations, that begin alike and end differently; correct or remove the row, or add the prompt."
        )
    found = extract_prompt({"chosen": chosen, "rejected": rejected})
    if not all(found[name] for name in ("prompt", *_TRL_NAMES)):
        raise BadInput(
            f"Row {index}: `chosen` and `rejected` have no beginning in common that could be the prompt, or one of "
            "them ends with it; correct or remove the row, or add a column 'prompt'."
        )
    return found


def chat_template_kwargs(row: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the chat template that a dataset row carries in `tools` and `chat_template_kwargs`, as in TRL."""
    kwargs = dict(row.get("chat_template_kwargs") or {})
    if row.get("tools"):
        kwargs["tools"] = json.loads(row["tools"]) if isinstance(row["tools"], str) else row["tools"]
    return kwargs


def message_text(text: str | list[dict[str, Any]]) -> str:
    """The text itself, or the text of a conversation's last message (of its text parts, where it has several)."""
    if isinstance(text, str):
        return text
    content = text[-1]["content"]
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content


def _columns(dataset: Dataset | IterableDataset) -> list[str]:
    if isinstance(dataset, Dataset):
        return dataset.column_names
    return list(next(iter(dataset), {}))


def _check_row(row: dict[str, Any], index: int, name: str) -> None:
    for column, value in row.items():
        if column in _TEMPLATE_COLUMNS:
            if problem := _problem_of_template_column(column, value):
                raise BadInput(f"`{name}`, row {index}: `{column}` {problem}; correct it or leave it empty.")
            continue
        problem = _problem(value)
        if problem is None and column != "prompt" and "prompt" in row:
            problem = _problem_beside_a_prompt(value, row["prompt"])
        if problem:
            raise BadInput(
                f"`{name}`, row {index}: the {column} {problem}; correct or remove the row (plain text, or a list of "
                "messages with 'role' and 'content', is expected)."
            )


def _problem(value: Any) -> str | None:
    if value is None:
        return "is missing (None)"
    if isinstance(value, str):
        return _problem_of_text(value)
    if not isinstance(value, list):
        return f"is not text but {type(value).__name__}"
    if not value:
        return "is empty (a list without messages)"
    for message in value:
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            return "is not text: one of its messages lacks 'role' or 'content'"
        if not isinstance(message["role"], str):
            return f"has a message whose role is no text but {type(message['role']).__name__}"
        content = message["content"]
        if content is None or (isinstance(content, str) and not content.strip()):
            return f"has an empty message of the {message['role']}"
        if isinstance(content, str) and (problem := _problem_of_text(content)):
            return problem
        if not isinstance(content, str | list):
            return f"has a message that is not text but {type(content).__name__}"
    return None


def _problem_of_text(text: str) -> str | None:
    if not text.strip():
        return "is empty"
    if not text.isascii() and whole_characters(text) != text:
        return "holds half of a character (a lone surrogate), which no tokenizer takes"
    return None


def _problem_of_template_column(column: str, value: Any) -> str | None:
    if not value:
        return None
    if column == "chat_template_kwargs":
        if not isinstance(value, dict):
            return f"must hold the names and values of the template's arguments, and is {type(value).__name__}"
        taken = sorted({"tokenize", "add_generation_prompt", "return_dict", "conversation", "tools"} & set(value))
        return f"holds `{taken[0]}`, which is set elsewhere" if taken else None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return "is no JSON"
    return None if isinstance(value, list) and all(isinstance(tool, dict) for tool in value) else "is no list of tools"


def _problem_beside_a_prompt(response: Any, prompt: Any) -> str | None:
    """What is no response to a prompt that stands in a column of its own."""
    if isinstance(response, str):
        return None
    rest = _after_prompt(response, prompt)
    if isinstance(prompt, str) and rest is response:
        return "is a list of messages and the prompt is plain text; write both as messages, or both as text"
    for message in rest:
        if message["role"] not in ("assistant", "tool"):
            return (
                f"has a message of the {message['role']}, and holds what the assistant wrote after the prompt; leave "
                "the prompt's messages, and the user's, out of it"
            )
    return None


def problem_ids(columns: Mapping[str, Sequence[Any]], n: int) -> list[int | str]:
    """What the problems of a dataset are called: the first of its columns of ids that tells all apart, or 0, 1, ..."""
    for name in ID_COLUMNS:
        if name in columns and len({str(value) for value in columns[name]}) == n:
            return [value if isinstance(value, int) else str(value) for value in columns[name]]
    return list(range(n))


def dataset_problem_ids(dataset: Dataset) -> list[int | str]:
    """[`problem_ids`] of a dataset."""
    return problem_ids({name: dataset[name] for name in ID_COLUMNS if name in dataset.column_names}, len(dataset))


def is_hub_id(name: str | None) -> bool:
    """Whether a model or dataset name refers to the Hub. A path of that name wins, as it does when loading."""
    if name is None or Path(name).expanduser().exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def public_name(name: str | None, default: str | None = None) -> str | None:
    """
    Name of a model or dataset for messages and cards: a Hub id as it is, of a path the last part.

    Args:
        name (`str`, *optional*):
            Hub id or path.
        default (`str`, *optional*):
            What to call one that has no name.
    """
    if not name or is_hub_id(name):
        return name or default
    if Path(name).is_dir():  # "." has a name of its own
        return Path(name).resolve().name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def file_loader(path: Path) -> str:
    """
    What [`~datasets.load_dataset`] calls the kind of a file.

    Raises:
        BadInput: If it is none that can be read.
    """
    loader = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}.get(
        Path(path.name.removesuffix(".gz")).suffix
    )
    if loader is None:
        raise BadInput(f"{path}: unknown kind of file; .jsonl, .json, .csv and .parquet can be read.")
    return loader


def load_split(
    name: str,
    config: str | None,
    split: str,
    max_rows: int | None = None,
    data_function: Callable[[Dataset], Dataset] | None = None,
) -> Dataset:
    """
    One split of a dataset: a Hub id, a local folder, or a `.jsonl`, `.json`, `.csv` or `.parquet` file,
    compressed by gzip (`.jsonl.gz`) or not.

    Args:
        name (`str`):
            Hub id, folder or file.
        config (`str`, *optional*):
            Name of the dataset's configuration.
        split (`str`):
            Name of the split; a file has one, `"train"`, whatever is asked for.
        max_rows (`int`, *optional*):
            Keep the first so many rows.
        data_function (`Callable`, *optional*):
            From the split as it is published to the dataset that is used, such as `problems` of a task pack
            ([`~correction_trl.tasks`]). What it returns is cut to `max_rows`.

    Raises:
        BadInput: If the file is empty or cannot be read, the dataset or its split does not exist, or `data_function`
            fails or returns no dataset.
    """
    path = Path(name)
    if path.is_file():
        loader = file_loader(path)
        if path.stat().st_size == 0:
            raise BadInput(f"{name}: the file is empty.")
        try:
            dataset = load_dataset(loader, data_files=str(path), split="train")
        except Exception as error:
            reason = first_line(error.__cause__ or error)
            raise BadInput(f"{name}: the file cannot be read as {path.suffix} ({reason}).") from error
    else:
        try:
            dataset = load_dataset(name, config)
        except Exception as error:
            raise BadInput(f"{name}: no such dataset, or it cannot be loaded ({first_line(error)}).") from error
        if isinstance(dataset, DatasetDict):
            if split not in dataset:
                raise BadInput(
                    f"{name} has no split {split!r}; it has {', '.join(dataset)}. Name the splits to use, for example "
                    "with `--dataset_test_split`."
                )
            dataset = dataset[split]
    if data_function is not None:
        dataset = prepare(dataset, name, data_function)
    return dataset if max_rows is None else dataset.select(range(min(max_rows, len(dataset))))


def prepare(dataset: Dataset, name: str, data_function: Callable) -> Dataset:
    """The dataset that a `data_function` makes of a split."""
    called = f"`data_function` {getattr(data_function, '__name__', type(data_function).__name__)!r}"
    try:
        prepared = data_function(dataset)
    except BadInput as error:
        raise BadInput(f"{public_name(name)}: {error}") from error
    except Exception as error:
        raise BadInput(
            f"{called} raised {type(error).__name__} on {public_name(name)}, whose columns are "
            f"{', '.join(dataset.column_names)}: {first_line(error)}"
        ) from error
    if not isinstance(prepared, Dataset):
        raise BadInput(f"{called} returned {type(prepared).__name__}; it must return a `datasets.Dataset`.")
    return prepared


def published_columns(dataset: Dataset, task: str, *kinds: Sequence[str]) -> Sequence[str]:
    """
    In which of its published forms a task's data come.

    Args:
        dataset ([`~datasets.Dataset`]):
            A split.
        task (`str`):
            The task's name, for the message.
        *kinds (`Sequence[str]`):
            The columns of each form.

    Returns:
        `Sequence[str]`: The first of `kinds` whose columns are all there.

    Raises:
        BadInput: If there is none.
    """
    for columns in kinds:
        if set(columns) <= set(dataset.column_names):
            return columns
    wanted = "; or ".join(", ".join(columns) for columns in kinds)
    raise BadInput(
        f"these are no data of {task}: the columns are {', '.join(dataset.column_names)}, and {wanted} are needed. "
        "Rename the columns, or name a `data_function` of your own."
    )


def with_prompts(dataset: Dataset, template: str) -> Dataset:
    """
    Give a dataset a column `prompt`: a user's message, made of other columns.

    Args:
        dataset ([`~datasets.Dataset`]):
            The dataset.
        template (`str`):
            The message, with `{column}` where a column's text goes; a brace of its own is doubled.

    Raises:
        BadInput: If the template names a column that is not there, or is none.
    """

    def message(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": template.format(**row)}]}

    try:
        template.format(**dict.fromkeys(dataset.column_names, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise BadInput(
            f"`prompt_template` cannot be filled in ({type(error).__name__}: {error}); the columns are "
            f"{', '.join(dataset.column_names)}, and a brace of its own is written twice."
        ) from None
    return dataset.map(message)
