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

from trl import ModelConfig

from correction_trl.named_functions import named_function
from correction_trl.recipe import DataArguments, as_dict, check_folders, parse, run
from correction_trl.teachers.arguments import TeacherArguments
from correction_trl.teachers.people import PeopleArguments
from correction_trl.teachers.sampled_responses import ResponseArguments


QUICKSTART = Path(__file__).parent / "configs" / "collect_corrections" / "quickstart.yaml"


@dataclass
class CollectionArguments(DataArguments):
    """Arguments of this recipe, beside those of the teacher, of the people and of the model that is sampled from."""

    output_dir: str = field(default="outputs/collect_corrections", metadata={"help": "Where everything is written."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset."})
    rows: int | None = field(default=None, metadata={"help": "The first so many rows."})
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
    push_to_hub: bool = field(default=False, metadata={"help": "Push the dataset to the Hub."})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "Where to; by default output_dir's name."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Whether a new repository is private."})


def main(script_args, response_args, people_args, teacher_args, model_args):
    from correction_trl.carry_addition import embedded_path
    from correction_trl.recipe import check_push, push_folder
    from correction_trl.reporting import write_dataset, write_metrics
    from correction_trl.teachers import CorrectionStore, collect
    from correction_trl.teachers.arguments import make_collecting_teacher
    from correction_trl.teachers.collection import kept_records
    from correction_trl.teachers.console import ProgressLine, print_collection
    from correction_trl.teachers.people import corrections_of_people
    from correction_trl.teachers.sampled_responses import with_responses

    output_dir, folder = Path(script_args.output_dir), Path(script_args.output_dir, "dataset")
    check_folders(output_dir)
    if script_args.dataset_name is None:
        teacher_args.teacher = teacher_args.teacher or "correction_trl.carry_addition:right_answer_teacher"
        model_args.model_name_or_path = model_args.model_name_or_path or embedded_path("tiny-carry-chat")
    teacher = make_collecting_teacher(teacher_args, people_args)  # `None`: people
    value_function = named_function(script_args, "value_function")
    push_to = (script_args.hub_dataset_id or output_dir.resolve().name) if script_args.push_to_hub else None
    if push_to:
        check_push(push_to, script_args.hub_private_repo, None, repo_type="dataset")
    dataset_name = script_args.dataset_name or embedded_path("carry_addition")
    dataset = script_args.load(dataset_name, script_args.dataset_split, script_args.rows)
    rows, responses_by = with_responses(dataset, response_args, model_args, cache=output_dir)
    progress, limits = None, (script_args.max_failed_share, script_args.retry_unparsable)
    with CorrectionStore(script_args.correction_store or output_dir / "corrections.sqlite") as store:
        if teacher is None:
            keys = corrections_of_people(store, rows, people_args)
            if keys is None:  # the items are in a file now, for another tool
                return
        else:
            with ProgressLine() as line:
                progress = collect(store, teacher, rows, *limits, on_progress=line.show)
            keys = teacher.keys_of(rows)
        found = store.get(keys)
        records = [found[key] for key in dict.fromkeys(keys) if key in found]
    result = write_dataset(
        records,
        folder,
        teacher="people" if teacher is None else teacher.name.rpartition(":")[2],
        responses_by=responses_by,
        prompt=None if teacher is None else teacher.prompt,
        kept=None if value_function is None else kept_records(value_function, records),
        hub_dataset_id=push_to,
        n_items=len(set(keys)),
    )
    after = {"correction_edit_ratio": result["correction_edit_ratio"]}
    config = as_dict(script_args, response_args, people_args, teacher_args)
    seconds, usage = (progress.seconds, progress.as_dict()) if progress else (0.0, {})
    write_metrics(folder / "metrics.json", {}, after, seconds, config, counts=result["counts"], usage=usage)
    print_collection(result, progress, folder)
    if push_to:
        push_folder(str(folder), push_to, script_args.hub_private_repo, None, repo_type="dataset")


def parse_arguments(argv=None):
    kinds = (CollectionArguments, ResponseArguments, PeopleArguments, TeacherArguments, ModelConfig)
    return parse(kinds, QUICKSTART, argv)


if __name__ == "__main__":
    run(main, *parse_arguments())
