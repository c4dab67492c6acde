# /// script
# dependencies = ["correction-trl"]
# ///
"""
Evaluation: how often a model is right at once, and how often after a strategy of correction, beside the controls that
spend the same number of samples without correcting anything.

    # The embedded model and task, on a CPU, in a minute
    accelerate launch recipes/evaluate.py

    # Your model or adapter, and the one it was trained from, on the same problems
    accelerate launch recipes/evaluate.py --config recipes/configs/evaluate/gsm8k.yaml \
        --model_name_or_path your-name/your-adapter --compare_with Qwen/Qwen2.5-7B-Instruct

    # A model behind an OpenAI-compatible server
    python recipes/evaluate.py --config recipes/configs/evaluate/server.yaml --model_name_or_path NAME

A run that is killed goes on where it stopped; several processes share the work. docs/evaluation.md says what is
measured, and how.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from trl import ModelConfig

from correction_trl.inference.arguments import InferenceArguments
from correction_trl.named_functions import function_or_judge, named_function
from correction_trl.recipe import EvaluationDataArguments, as_dict, check_folders, parse, run


QUICKSTART = Path(__file__).parent / "configs" / "evaluate" / "quickstart.yaml"


@dataclass
class EvaluateArguments(EvaluationDataArguments):
    """Arguments of this recipe, beside those of the strategies and of the model."""

    output_dir: str = field(default="outputs/evaluate", metadata={"help": "Where results and traces are written."})
    compare_with: str | None = field(
        default=None, metadata={"help": "A second model, evaluated on the same problems as `before`."}
    )
    value_function: str | None = field(
        default=None, metadata={"help": "`module:function` that rates responses, with TRL's reward signature."}
    )
    correct_threshold: float = field(default=1.0, metadata={"help": "Value from which a response is right."})
    table_function: str | None = field(
        default=None, metadata={"help": "`module:function` that measures more, such as a paper's columns."}
    )
    table_settings: dict | str | None = field(default=None, metadata={"help": "Its settings, by parameter."})
    update_card: bool = field(
        default=False, metadata={"help": "Put the results into the README.md of a local model's folder."}
    )


def main(args, asking, model_args):
    from correction_trl.carry_addition import embedded_path
    from correction_trl.data_utils import public_name
    from correction_trl.errors import BadInput
    from correction_trl.evaluation import evaluate_traces
    from correction_trl.inference import TraceStore, problems_of, solve
    from correction_trl.inference.arguments import make_chat, make_corrector, make_strategies, traces_depend_on
    from correction_trl.inference.trace_store import model_version
    from correction_trl.reporting import write_evaluation

    start, accelerator = time.time(), Accelerator()
    check_folders(Path(args.output_dir))
    dataset_name = args.dataset_name or embedded_path("carry_addition")
    model_name = model_args.model_name_or_path or embedded_path("tiny-carry-chat")
    value_function = named_function(args, "value_function", "correction_trl.carry_addition:exact_match", required=True)
    if args.update_card and not (Path(model_name) / "README.md").is_file():
        raise BadInput(f"`update_card` is set, but there is no {Path(model_name) / 'README.md'}.")
    dataset = args.load(dataset_name, args.dataset_test_split, args.test_rows)
    table_function = named_function(args, "table_function", settings="table_settings")
    problems = problems_of(dataset, value_function, table_function)
    feedback = asking.feedback(partial(function_or_judge, args))
    corrector = make_corrector(asking, model_args, accelerator.device, feedback)
    strategies = make_strategies(asking, value_function, corrector, feedback)

    def evaluate(model):
        version = model_version(model, model_args.model_revision) | ({"judge": args.judge} if args.judge else {})
        depends_on = traces_depend_on(asking, strategies, args.value_function, version)
        chat = partial(make_chat, asking, model, model_args, accelerator)
        found = solve(problems, strategies, chat, store, depends_on, asking.samples, public_name(model))
        judge = {"correct_threshold": args.correct_threshold, "extract_answer": asking.extractor()}
        judge |= {"table_function": table_function, "n_turns": asking.turns}
        return {name: evaluate_traces(dataset, traces, value_function, **judge) for name, traces in found.items()}

    with TraceStore(Path(args.output_dir) / "traces", accelerator.process_index) as store:
        accelerator.wait_for_everyone()  # before anything is added, all have read what is there
        before = evaluate(args.compare_with) if args.compare_with else None
        after = evaluate(model_name)
    if accelerator.is_main_process:
        write_evaluation(
            args.output_dir,
            before=before,
            after=after,
            model_name=model_name,
            compare_with=args.compare_with,
            dataset_name=dataset_name,
            split=args.dataset_test_split,
            how=asking.describe(),
            seconds=time.time() - start,
            config=as_dict(args, asking, model_args),
            update_model_card=args.update_card,
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()


def parse_arguments(argv=None):
    return parse((EvaluateArguments, InferenceArguments, ModelConfig), QUICKSTART, argv)


if __name__ == "__main__":
    run(main, *parse_arguments())
