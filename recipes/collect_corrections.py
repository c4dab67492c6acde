# /// script
# dependencies = ["correction-trl"]
# ///
"""
Collect corrections: prompts and responses in, corrections by a teacher out, each asked for once and kept.

    # The embedded task, model and teacher, on a CPU, in seconds
    python recipes/collect_corrections.py

    # A model behind any OpenAI-compatible server
    export TEACHER_API_KEY=...
    python recipes/collect_corrections.py --config recipes/configs/collect_corrections/server.yaml

    # You, on a page in your browser
    python recipes/collect_corrections.py --teacher human --dataset_name my_responses.jsonl

Responses come from the dataset (column `response`), or are sampled from a model. Every answer is on the disk before it
is counted; a run that is killed and started again asks for what is missing. The result is a dataset in
`output_dir/dataset`, with a card, that `recipes/correction_optimization.py --dataset_name` and TRL's trainers read.
"""

from dataclasses import dataclass, field
from pathlib import Path


QUICKSTART = Path(__file__).parent / "configs" / "collect_corrections" / "quickstart.yaml"


@dataclass
class CollectionArguments:
    """Arguments of this recipe, beside those of the teacher and of the model that is sampled from."""

    output_dir: str = field(default="outputs/collect_corrections", metadata={"help": "Where everything is written."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, folder or file with `prompt`. By default the embedded task."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset."})
    rows: int | None = field(default=None, metadata={"help": "The first so many rows."})
    response_column: str = field(
        default="response", metadata={"help": "Column with the responses; without it they are sampled."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Most tokens of a sampled response."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the sampled responses; 0: greedy."})
    generation_batch_size: int = field(default=64, metadata={"help": "Most prompts in one call of `generate`."})
    seed: int = field(default=0, metadata={"help": "Of the sampled responses."})
    correction_store: str | None = field(
        default=None, metadata={"help": "File that keeps the answers. By default output_dir/corrections.sqlite."}
    )
    max_failed_share: float = field(
        default=0.1, metadata={"help": "Share of the items that may fail; with more, the run stops."}
    )
    retry_unparsable: bool = field(default=False, metadata={"help": "Ask again where a reply could not be read."})
    value_function: str | None = field(
        default=None, metadata={"help": "`module:function`: keep only corrections that it rates above the response."}
    )
    export_items: str | None = field(
        default=None,
        metadata={"help": "human: write the items to this .jsonl, or .json for Argilla, for another tool, and stop."},
    )
    import_answers: str | None = field(
        default=None, metadata={"help": "human: read the answers of another tool from this file, and open no page."}
    )
    port: int | None = field(default=None, metadata={"help": "human: port of the page. By default a free one."})
    open_browser: bool = field(default=True, metadata={"help": "human: open the page in the browser."})
    push_to_hub: bool = field(default=False, metadata={"help": "Push the dataset to the Hub."})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "Where to; by default output_dir's name."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Whether a new repository is private."})


def main(script_args, teacher_args, model_args):
    from correction_trl.carry_addition import embedded_path
    from correction_trl.errors import BadInput
    from correction_trl.functions import import_function
    from correction_trl.recipe import as_dict, check_folders, check_push, load_split, public_name, push_folder
    from correction_trl.reporting import write_dataset, write_metrics
    from correction_trl.teachers import CorrectionStore, collect, correction_key
    from correction_trl.teachers.arguments import make_teacher
    from correction_trl.teachers.base import as_teacher
    from correction_trl.teachers.collection import improves
    from correction_trl.teachers.console import ProgressLine, print_collection
    from correction_trl.teachers.sampled_responses import sampled_responses

    output_dir = Path(script_args.output_dir)
    check_folders(output_dir, None)
    embedded = script_args.dataset_name is None
    if embedded and teacher_args.teacher is None:
        teacher_args.teacher = "correction_trl.carry_addition:right_answer_teacher"
    by_hand = teacher_args.teacher == "human"
    teacher = make_teacher(teacher_args)
    if teacher is None and not by_hand:
        raise BadInput("No `teacher` is named: `server`, `local`, `human`, `stored`, or a `module:function`.")
    if teacher_args.teacher == "policy":
        raise BadInput("`teacher: policy` needs a policy that is trained; use it in correction_optimization.py.")
    if not by_hand and (script_args.export_items or script_args.import_answers):
        raise BadInput("`export_items` and `import_answers` are for `teacher: human`.")
    value_function = (
        import_function(script_args.value_function, "value_function") if script_args.value_function else None
    )
    push_to = (script_args.hub_dataset_id or output_dir.resolve().name) if script_args.push_to_hub else None
    if push_to:
        check_push(push_to, script_args.hub_private_repo, None, repo_type="dataset")

    dataset_name = embedded_path("carry_addition") if embedded else script_args.dataset_name
    dataset = load_split(dataset_name, script_args.dataset_config, script_args.dataset_split, script_args.rows)
    sampled_from = None
    if script_args.response_column in dataset.column_names:
        if script_args.response_column != "response":
            dataset = dataset.rename_column(script_args.response_column, "response")
    else:
        sampled_from = model_args.model_name_or_path or (embedded_path("tiny-carry-chat") if embedded else None)
        if sampled_from is None:
            raise BadInput(
                f"{public_name(dataset_name, 'the dataset')} has no column {script_args.response_column!r} (it has "
                f"{', '.join(dataset.column_names)}); name the column with `response_column`, or a model to sample "
                "responses from with `model_name_or_path`."
            )
        dataset = sampled_responses(dataset, sampled_from, script_args, model_args, cache=output_dir)

    with CorrectionStore(script_args.correction_store or output_dir / "corrections.sqlite") as store:
        rows = _with_text_responses(dataset)
        if by_hand:
            keys = _ask_people(store, rows, script_args, correction_key)
            progress = None
            if keys is None:
                return
        else:
            teacher = as_teacher(teacher)
            with ProgressLine() as line:
                progress = collect(
                    store,
                    teacher,
                    rows,
                    script_args.max_failed_share,
                    script_args.retry_unparsable,
                    on_progress=line.show,
                )
            keys = teacher.keys_of(rows)
        found = store.get(keys)
        records = [found[key] for key in dict.fromkeys(keys) if key in found]

    kept = None
    if value_function is not None:
        names = dict.fromkeys(name for record in records for name in record.columns)
        columns = {name: [record.columns.get(name) for record in records] for name in names}
        prompts, responses = [r.prompt for r in records], [r.response for r in records]
        better = improves(value_function, prompts, responses, [r.correction for r in records], columns)
        kept = [is_better or r.status == "unchanged" for is_better, r in zip(better, records, strict=True)]
    folder = output_dir / "dataset"
    result = write_dataset(
        records,
        folder,
        teacher="people" if by_hand else teacher.name.rpartition(":")[2],
        responses_by=public_name(sampled_from, "a language model") if sampled_from else "a language model",
        prompt=getattr(teacher, "prompt", None),
        kept=kept,
        hub_dataset_id=push_to,
    )
    write_metrics(
        folder / "metrics.json",
        before={},
        after={"correction_edit_ratio": result["correction_edit_ratio"]},
        seconds=progress.seconds if progress else 0.0,
        config=as_dict(script_args, teacher_args),
        counts=result["counts"],
        usage=progress.as_dict() if progress else {},
    )
    print_collection(result, progress, folder)
    if push_to:
        push_folder(str(folder), push_to, script_args.hub_private_repo, None, repo_type="dataset")


def _with_text_responses(dataset):
    """Rows with the response as text, whichever way the dataset writes it."""
    from correction_trl.data_utils import message_text

    return dataset.map(lambda row: {"response": message_text(row["response"])}) if len(dataset) else dataset


def _ask_people(store, rows, script_args, correction_key):
    """Keys of all items, when the people have answered; `None` if the items were only written for another tool."""
    from correction_trl.teachers import ask_people, read_annotations, write_argilla, write_jsonl

    items = [
        {
            "key": correction_key(row["prompt"], row["response"], teacher="human"),
            "prompt": row["prompt"],
            "response": row["response"],
            "columns": {name: value for name, value in row.items() if name not in ("prompt", "response")},
        }
        for row in rows
    ]
    if script_args.export_items:
        write = write_argilla if script_args.export_items.endswith(".json") else write_jsonl
        write(items, script_args.export_items)
        print(
            f"{len(items)} items were written to {script_args.export_items}; read the answers with --import_answers."
        )
        return None
    if script_args.import_answers:
        answers = read_annotations(script_args.import_answers)
        print(f"{store.add(answers)} of {len(answers)} answers in {script_args.import_answers} are new.")
    else:
        ask_people(store, items, port=script_args.port, open_browser=script_args.open_browser)
    return [item["key"] for item in items]


def parse_arguments(argv=None):
    from trl import ModelConfig

    from correction_trl.recipe import parse
    from correction_trl.teachers.arguments import TeacherArguments

    return parse((CollectionArguments, TeacherArguments, ModelConfig), QUICKSTART, argv)


if __name__ == "__main__":
    from correction_trl.recipe import run

    run(main, *parse_arguments())
