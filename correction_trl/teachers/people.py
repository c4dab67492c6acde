"""People as teachers: on the page in the browser, or in another tool, through files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .annotation_files import read_annotations, write_argilla, write_jsonl
from .store import CorrectionStore, correction_key


@dataclass
class PeopleArguments:
    """How people are asked, with `teacher: human`."""

    export_items: str | None = field(
        default=None,
        metadata={"help": "human: write the items to this .jsonl, or .json for Argilla, for another tool, and stop."},
    )
    import_answers: str | None = field(
        default=None, metadata={"help": "human: read the answers of another tool from this file, and open no page."}
    )
    port: int | None = field(default=None, metadata={"help": "human: port of the page. By default a free one."})
    open_browser: bool = field(default=True, metadata={"help": "human: open the page in the browser."})


def corrections_of_people(
    store: CorrectionStore, rows: Iterable[Mapping[str, Any]], arguments: PeopleArguments
) -> list[str] | None:
    """
    Have people correct responses; what they answer is in the store.

    Args:
        store ([`CorrectionStore`]):
            Keeps the answers.
        rows (`Iterable[dict]`):
            With `prompt`, `response`, and what the people are shown beside them.
        arguments ([`PeopleArguments`]):
            How they are asked.

    Returns:
        `list[str]`: The keys of the items in the store; `None` if the items were only written for another tool.
    """
    items = [
        {
            "key": correction_key(row["prompt"], row["response"], teacher="human"),
            "prompt": row["prompt"],
            "response": row["response"],
            "columns": {name: value for name, value in row.items() if name not in ("prompt", "response")},
        }
        for row in rows
    ]
    if arguments.export_items:
        write = write_argilla if arguments.export_items.endswith(".json") else write_jsonl
        write(items, arguments.export_items)
        print(f"{len(items)} items were written to {arguments.export_items}; read the answers with --import_answers.")
        return None
    if arguments.import_answers:
        answers = read_annotations(arguments.import_answers)
        print(f"{store.add(answers)} of {len(answers)} answers in {arguments.import_answers} are new.")
    else:
        from .human import ask_people  # Gradio, which files do without

        ask_people(store, items, port=arguments.port, open_browser=arguments.open_browser)
    return [item["key"] for item in items]
