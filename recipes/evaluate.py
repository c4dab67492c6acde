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
from pathlib import Path


QUICKSTART = Path(__file__).parent / "configs" / "evaluate" / "quickstart.yaml"

STRATEGIES = {
    "intrinsic": "correction_trl.inference:intrinsic",
    "self_refine": "correction_trl.inference:self_refine",
    "gated_revision": "correction_trl.inference:gated_revision",
    "proco": "correction_trl.inference:proco",
    "self_checking": "correction_trl.inference:self_checking",
    "with_corrector": "correction_trl.inference:with_corrector",
}
CONTROLS = {
    "self_consistency": "correction_trl.inference:self_consistency",
    "best_of_n_oracle": "correction_trl.inference:best_of_n",
    "resample": "correction_trl.inference:resample",
}
# A run with other settings starts anew; the traces of the earlier one stay
WHAT_TRACES_DEPEND_ON = (
    "turns", "instruction", "extract_answer", "check", "temperature", "control_temperature", "max_completion_length",
    "seed",
)  # fmt: skip


@dataclass
class EvaluateArguments:
    """Arguments of this recipe, beside those of the model."""

    output_dir: str = field(default="outputs/evaluate", metadata={"help": "Where results and traces are written."})
    compare_with: str | None = field(
        default=None, metadata={"help": "A second model, evaluated on the same problems as `before`."}
    )
    server_base_url: str | None = field(
        default=None,
        metadata={"help": "Address of an OpenAI-compatible server; the models' names are then the server's."},
    )
    server_concurrency: int = field(default=32, metadata={"help": "Most requests to the server at a time."})
    server_timeout: float = field(default=120.0, metadata={"help": "Seconds for one request."})
    server_api_key_variable: str = field(
        default="SERVER_API_KEY", metadata={"help": "Environment variable that holds the API key, if one is needed."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, folder or file. By default the embedded task."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    test_rows: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows."})
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "For data without a column `prompt`: a user's message with {column} in it; {{ is a brace."},
    )
    value_function: str | None = field(
        default=None, metadata={"help": "`module:function` that rates responses, with TRL's reward signature."}
    )
    correct_threshold: float = field(default=1.0, metadata={"help": "Value from which a response is right."})
    extract_answer: str | None = field(
        default=None,
        metadata={
            "help": "`module:function` from a response to its answer; default: the whole text (docs/evaluation.md)."
        },
    )
    strategies: list[str] = field(
        default_factory=lambda: ["intrinsic"],
        metadata={"help": "Names, or `module:function`; the others are compared with the first."},
    )
    controls: bool = field(default=True, metadata={"help": "Whether to run the controls with as many samples."})
    turns: int = field(default=2, metadata={"help": "Attempts of each strategy; samples of each control."})
    instruction: str | None = field(default=None, metadata={"help": "Asks for the next attempt; default: SCoRe's."})
    check: str = field(
        default="correction_trl.inference:ask_whether_right",
        metadata={"help": "`module:function` that decides, for `gated_revision`, whether to revise."},
    )
    corrector: str | None = field(default=None, metadata={"help": "Trained corrector, for `with_corrector`."})
    strategy_settings: dict | str | None = field(
        default=None, metadata={"help": 'Further settings by strategy, such as {"self_refine": {"rounds": 3}}.'}
    )
    temperature: float = field(default=0.0, metadata={"help": "Of attempts and checks; 0 is greedy."})
    control_temperature: float = field(default=0.7, metadata={"help": "Of the controls' samples."})
    samples: int = field(default=1, metadata={"help": "Independent runs of each strategy on each problem."})
    max_completion_length: int = field(default=256, metadata={"help": "Most tokens of a reply."})
    batch_size: int = field(default=64, metadata={"help": "Conversations per batch of a local model."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    update_card: bool = field(
        default=False, metadata={"help": "Put the results into the README.md of a local model's folder."}
    )


def main(args, model_args):
    import json

    from accelerate import Accelerator

    from correction_trl.carry_addition import embedded_path
    from correction_trl.data_utils import check_dataset
    from correction_trl.errors import BadInput
    from correction_trl.evaluation import evaluate_traces
    from correction_trl.functions import call_value_function, import_function
    from correction_trl.inference import (
        Corrector,
        LocalChat,
        Problem,
        ServerChat,
        TraceStore,
        load_model,
        solve,
        whole_text,
    )
    from correction_trl.inference.strategy import bind_settings
    from correction_trl.inference.trace_store import model_version
    from correction_trl.policy.tokenization import NOT_FOR_THE_TEACHER, chat_template_kwargs
    from correction_trl.recipe import as_dict, check_folders, load_split, public_name, with_prompts
    from correction_trl.reporting import write_evaluation

    start = time.time()
    accelerator = Accelerator()
    check_folders(Path(args.output_dir), None)
    embedded = args.dataset_name is None
    dataset_name = embedded_path("carry_addition") if embedded else args.dataset_name
    model_name = model_args.model_name_or_path or embedded_path("tiny-carry-chat")
    if embedded and args.value_function is None:
        args.value_function = "correction_trl.carry_addition:exact_match"
    if args.value_function is None:
        raise BadInput("No `value_function` was given: nothing says which responses are right; see docs/rewards.md.")
    if args.update_card and not (Path(model_name) / "README.md").is_file():
        raise BadInput(f"`update_card` is set, but there is no {Path(model_name) / 'README.md'}.")
    value_function = import_function(args.value_function, "value_function")
    extract_answer = import_function(args.extract_answer, "extract_answer") if args.extract_answer else None
    dataset = load_split(dataset_name, args.dataset_config, args.dataset_test_split, args.test_rows)
    if args.prompt_template:
        dataset = with_prompts(dataset, args.prompt_template)
    check_dataset(dataset, "the evaluation dataset", value_function)
    problems = [
        Problem(
            row["prompt"],
            {name: value for name, value in row.items() if name not in NOT_FOR_THE_TEACHER},
            chat_template_kwargs(row),
        )
        for row in dataset
    ]
    # What is wrong with the value function is said now, not after hours
    columns = {name: [value] for name, value in problems[0].columns.items()}
    call_value_function(value_function, [problems[0].prompt], [""], columns)

    # A strategy's settings are filled in by the names of its parameters
    own = args.strategy_settings or {}
    own = json.loads(own) if isinstance(own, str) else own
    fill = {"turns": args.turns, "rounds": args.turns - 1}
    fill |= {"instruction": args.instruction} if args.instruction else {}
    fill |= {"extract_answer": extract_answer} if extract_answer else {}
    check = bind_settings(import_function(args.check, "check"), fill, own.get("check", {}), "strategy_settings.check")
    if "with_corrector" in args.strategies:
        if args.corrector is None:
            raise BadInput("The strategy `with_corrector` needs a `corrector`: the folder or Hub id of a trained one.")
        fill["corrector"] = Corrector(
            *load_model(args.corrector, model_args, accelerator.device),
            max_corrections=args.turns - 1,
            message_template=args.corrector if Path(args.corrector).is_dir() else None,
            max_completion_length=args.max_completion_length,
            temperature=args.temperature,
            batch_size=args.batch_size,
        )
    of_controls = {"samples": args.turns, "temperature": args.control_temperature, "value_function": value_function}
    wanted = {name: fill | ({"check": check} if name == "gated_revision" else {}) for name in args.strategies}
    wanted |= dict.fromkeys(CONTROLS, fill | of_controls) if args.controls else {}
    strategies = {}
    for name, settings in wanted.items():
        strategy = import_function(STRATEGIES.get(name) or CONTROLS.get(name) or name, "strategies")
        strategies[name] = bind_settings(strategy, settings, own.get(name, {}), f"strategy_settings.{name}")
    if unknown := sorted(own.keys() - strategies.keys() - {"check"}):
        raise BadInput(f"`strategy_settings` has settings for {', '.join(unknown)}, which is not among `strategies`.")

    def chat(model):
        limits = {"temperature": args.temperature, "max_tokens": args.max_completion_length}
        if args.server_base_url is not None:
            client = {"timeout": args.server_timeout, "api_key_variable": args.server_api_key_variable}
            return ServerChat(model, args.server_base_url, concurrency=args.server_concurrency, **limits, **client)
        loaded = load_model(model, model_args, accelerator.device)
        return LocalChat(
            *loaded, batch_size=args.batch_size, seed=args.seed + 1_000_003 * accelerator.process_index, **limits
        )

    def evaluate(model):
        depends_on = {
            name: {
                "model": model_version(model, model_args.model_revision),
                "corrector": args.corrector and model_version(args.corrector),
                "value_function": args.value_function if "value_function" in strategy.keywords else None,
                "own": [own.get(name), own.get("check")],
                **{setting: getattr(args, setting) for setting in WHAT_TRACES_DEPEND_ON},
            }
            for name, strategy in strategies.items()
        }
        traces = solve(
            problems,
            strategies,
            lambda: chat(model),
            store,
            depends_on,
            samples=args.samples,
            title=public_name(model, "model"),
        )
        judge = {
            "correct_threshold": args.correct_threshold,
            "extract_answer": extract_answer or whole_text,
            "n_turns": args.turns,
        }
        return {name: evaluate_traces(dataset, traces[name], value_function, **judge) for name in strategies}

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
            how=("Greedy decoding" if args.temperature == 0 else f"Temperature {args.temperature:g}")
            + f", {args.turns} attempts; the controls sample {args.turns} times at temperature "
            + f"{args.control_temperature:g}.",
            seconds=time.time() - start,
            config=as_dict(args, model_args),
            update_model_card=args.update_card,
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()


def parse_arguments(argv=None):
    from trl import ModelConfig

    from correction_trl.recipe import parse

    return parse((EvaluateArguments, ModelConfig), QUICKSTART, argv)


if __name__ == "__main__":
    from correction_trl.recipe import run

    run(main, *parse_arguments())
