"""What surrounds the trainer in every recipe: the settings, the data, the evaluations, the report and the push."""

import atexit
import contextlib
import difflib
import enum
import logging
import math
import os
import re
import shlex
import sys
import tempfile
import time
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from huggingface_hub import HfApi
from transformers import AutoConfig
from trl import ModelConfig, TrlParser
from trl.scripts.utils import DatasetConfig

from .carry_addition import embedded_path
from .checkpoints import checkpoint_to_resume_from, full_disk, owned
from .data_utils import load_split, prepare, public_name, with_prompts
from .errors import BadInput, TeacherFailed, first_line
from .mixtures import load_mixture, read_mixture
from .named_functions import named_function


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer


# Settings that are gone: what to do instead
REMOVED_SETTINGS = {
    "vllm_model_impl": "vLLM picks the implementation itself",
    "vllm_enable_sleep_mode": "vLLM stays awake; lower `vllm_gpu_memory_utilization` to leave the trainer more memory",
    "vllm_server_host": "set `vllm_server_base_url: http://HOST:PORT`",
    "vllm_server_port": "set `vllm_server_base_url: http://HOST:PORT`",
    "vllm_server_timeout": "start the server before the run",
    "vllm_group_port": "TRL's port for the weights is used",
    "n_rounds": "for another round of both stages, start the recipe again from the trained model",
    "offline_fraction": "first attempts are always sampled from the policy",
    **dict.fromkeys(
        ("length_prior_mean", "length_prior_std", "length_prior_lengths"),
        "`length_prior` is one mapping, such as `{name: normal, mean: 120, std: 30}`",
    ),
    "threshold": "set `correct_threshold`",
    "right": "set `correct_threshold`",
    "min_p": "set `generation_kwargs: {min_p: ...}`",
    "repetition_penalty": "set `generation_kwargs: {repetition_penalty: ...}`",
}
# TRL's advice for adapters: ten times the learning rate of full fine-tuning
ADAPTER_LEARNING_RATE_FACTOR = 10
# What other libraries say at the start of every run, that its user can do nothing about. Nothing else is silenced.
NOISE_LOGGED = ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward")
NOISE_WARNED = (
    ("'pin_memory' argument is set as true but no accelerator is found", UserWarning),
    ("`gradient_checkpointing` is deprecated", FutureWarning),
    ("`is_gradient_checkpointing` is deprecated", FutureWarning),
)


# --------------------------------------------------------------------------------------------------------------------
# Settings
# --------------------------------------------------------------------------------------------------------------------


@dataclass
class DataArguments:
    """Where the data of a recipe are."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, folder or file. By default the embedded task."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    data_function: str | None = field(
        default=None,
        metadata={
            "help": "`module:function` from a split as it is published to the dataset to use, such as `problems` of a "
            "task pack (docs/tasks.md)."
        },
    )
    judge: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "A model behind a server that judges, for settings that name `judge` (a value function) or "
            "`judge:feedback`: {model, base_url, template, store, ...}; see docs/rewards.md."
        },
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "For data without a column `prompt`: a user's message with {column} in it; {{ is a brace."},
    )

    @property
    def embedded(self) -> bool:
        """Whether no data are named, and the embedded task is used."""
        return self.dataset_name is None

    def load(
        self, name: str, split: str, max_rows: int | None = None, data_function: str = "data_function"
    ) -> "Dataset":
        """
        A split, prepared by `data_function` and `prompt_template`.

        Args:
            name (`str`):
                Hub id, folder or file: `dataset_name`, or where its test split is. The configuration is that of
                `dataset_name`.
            split (`str`):
                Name of the split.
            max_rows (`int`, *optional*):
                Keep the first so many rows.
            data_function (`str`, *optional*, defaults to `"data_function"`):
                Setting that names the function.

        Raises:
            BadInput: From [`~data_utils.load_split`] and [`~data_utils.with_prompts`].
        """
        config = self.dataset_config if name == self.dataset_name else None
        dataset = load_split(name, config, split, max_rows, named_function(self, data_function))
        return with_prompts(dataset, self.prompt_template) if self.prompt_template else dataset


@dataclass
class EvaluationDataArguments(DataArguments):
    """The problems that a model is evaluated on."""

    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    test_rows: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows."})


@dataclass
class ScriptArguments(EvaluationDataArguments):
    """The data of a training recipe, which is evaluated before and after; a recipe adds its own arguments to them."""

    datasets: list[DatasetConfig] | None = field(
        default=None,
        metadata={
            "help": "In place of `dataset_name`, several datasets as one, as in TRL: a list of {path, name, split, "
            "columns, fraction, data_dir, data_files}; fractions are shares of the mixture."
        },
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_validation_split: str = field(
        default="validation", metadata={"help": "Split for the trainer's evaluations, with `eval_strategy`."}
    )
    test_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Where the test split is, if not in `dataset_name`; needed if that is a single file."},
    )
    test_data_function: str | None = field(
        default=None, metadata={"help": "`data_function` of the test split, where it is another one."}
    )
    train_rows: int | None = field(default=None, metadata={"help": "Train on the first so many rows."})
    regression: list[str] | None = field(
        default=None,
        metadata={
            "help": "Tasks of lm-eval, such as `gsm8k,ifeval`, that are measured before and after training "
            "(docs/evaluation.md). Most load their data from the Hub."
        },
    )
    regression_limit: int | None = field(default=None, metadata={"help": "The first so many problems of each task."})
    regression_path: str | None = field(default=None, metadata={"help": "Folder with task files of your own."})
    log_format: Literal["auto", "rich", "plain"] = field(
        default="auto",
        metadata={
            "help": "What is shown while it trains: 'rich' progress, a 'plain' line per log, or 'auto': rich on a "
            "terminal, plain in files. Everything is logged either way."
        },
    )
    save_on_signal: bool = field(
        default=False, metadata={"help": "At SIGTERM or Ctrl-C, finish the update, save a checkpoint and end."}
    )

    def __post_init__(self):
        if self.datasets is None:
            return
        self.datasets = read_mixture(self.datasets)
        for name in ("dataset_name", "dataset_config", "train_rows"):
            if getattr(self, name) is not None:
                raise BadInput(
                    f"`datasets` says what is trained on, and so does `{name}`; leave one of them out. A part of a "
                    "dataset is `split: train[:1000]`; the test problems are in `test_dataset_name`."
                )

    @property
    def embedded(self) -> bool:
        return self.dataset_name is None and self.datasets is None

    def load_mixture(self) -> "Dataset":
        """
        `datasets` as one, prepared by `data_function` and `prompt_template`.

        Raises:
            BadInput: From [`~mixtures.load_mixture`], [`~data_utils.prepare`] and [`~data_utils.with_prompts`].
        """
        mixture, function = load_mixture(self.datasets), named_function(self, "data_function")
        if function is not None:
            mixture = prepare(mixture, "datasets", function)
        return with_prompts(mixture, self.prompt_template) if self.prompt_template else mixture


@dataclass
class ReplayArguments:
    """General data that a method replays against forgetting."""

    replay_dataset: str | None = field(
        default=None,
        metadata={"help": "Hub id, folder or file with `prompt` and `completion`, or `messages`; see `replay_share`."},
    )
    replay_config: str | None = field(default=None, metadata={"help": "Configuration of the replayed dataset."})
    replay_split: str = field(default="train", metadata={"help": "Split of it."})

    def load_replay(self) -> "Dataset | None":
        """The dataset, if one is named; raises what [`~data_utils.load_split`] does."""
        if self.replay_dataset is None:
            return None
        return load_split(self.replay_dataset, self.replay_config, self.replay_split)


def parse(dataclass_types: Sequence[type], default_config: Path, argv: Sequence[str] | None = None) -> tuple:
    """
    Parse `--config FILE.yaml` and command-line overrides. Without a config and without a model, `default_config` is
    used, so that a recipe runs with no arguments.

    Args:
        dataclass_types (`Sequence[type]`):
            Dataclasses to fill.
        default_config (`Path`):
            The recipe's quickstart.
        argv (`Sequence[str]`, *optional*):
            Defaults to `sys.argv[1:]`.

    Returns:
        `tuple` of dataclass instances.

    Raises:
        SystemExit: With one sentence, if a key of the file or an argument is unknown, or a value is not allowed.
    """
    try:
        return _parse(dataclass_types, default_config, list(sys.argv[1:] if argv is None else argv))
    except (ValueError, TypeError, OSError, ImportError, OverflowError, RecursionError, yaml.YAMLError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        if "bf16" in message:
            message = (
                "bfloat16 is TRL's default and there is no GPU; set `bf16: false` (float32), or `use_cpu: true` "
                "(bfloat16 on the CPU)."
            )
        raise SystemExit(f"Configuration: {message}") from error


def _parse(dataclass_types: Sequence[type], default_config: Path, argv: list[str]) -> tuple:
    config_file = _take_config(argv, default_config.parent)
    if config_file is None and not any(argument.startswith("--model_name_or_path") for argument in argv):
        config_file = default_config
    # Without abbreviations: a mistyped `--learning_rat` must not set the learning rate
    parser = _Parser(dataclass_types, allow_abbrev=False)
    hints = {name: hint for kind in dataclass_types for name, hint in typing.get_type_hints(kind).items()}
    hints = {action.dest: hints[action.dest] for action in parser._actions if action.dest in hints}
    config = {} if config_file is None else _read_config(config_file, hints)
    parser.set_defaults_with_config(**config)
    *parts, remaining = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if remaining:
        name = remaining[0].partition("=")[0]
        if not name.startswith("--"):
            raise ValueError(f"{name!r} belongs to no argument. Lists are written `--name first second`.")
        raise ValueError(_unknown(name.removeprefix("--"), hints, "--"))
    for part in parts:
        _check_numbers(part)
    _adapt_learning_rate(parts, config.keys() | {word[2:].partition("=")[0] for word in argv if word[:2] == "--"})
    return tuple(parts)


def _take_config(argv: list[str], shipped: Path) -> Path | None:
    """
    The file of `--config FILE` or `--config=FILE`, which is taken out of the arguments. A bare name that is no file
    here is one of the folder `shipped`: `--config qlora_24gb`.
    """
    for i, argument in enumerate(argv):
        name, equals, file = argument.partition("=")
        if name == "--config":
            file = file if equals else "".join(argv[i + 1 : i + 2])
            if not file or file.startswith("--"):
                raise ValueError("`--config` needs the name of a YAML file.")
            del argv[i : i + (1 if equals else 2)]
            named = shipped / f"{file}.yaml"
            return named if Path(file).name == file and not Path(file).exists() and named.is_file() else Path(file)
    return None


class _Parser(TrlParser):
    """Ends with the sentence alone: the usage of some two hundred arguments would bury it."""

    def error(self, message: str):
        raise SystemExit(f"Configuration: {message}. `--help` lists the arguments.")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node, deep=False):
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, (tag, key) in enumerate(keys):
            if (tag, key) in keys[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_config(file: Path, hints: dict[str, Any]) -> dict[str, Any]:
    """The settings of a YAML file, as their type hints want them; those under `env` become environment variables."""
    config = _read_yaml(file)
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold settings, one `name: value` a line.")
    variables = config.pop("env", {})
    if not isinstance(variables, dict):
        raise ValueError(f"{file}: `env` must hold environment variables, one `NAME: value` a line.")
    for name, value in variables.items():
        os.environ[str(name)] = str(value)
    for name, value in config.items():
        if not isinstance(name, str):
            raise ValueError(f"{file}: the key {name!r} is no name of a setting.")
        if name not in hints:
            raise ValueError(f"{file}: {_unknown(name, hints)}")
        try:
            config[name] = _as_hinted(value, hints[name])
        except ValueError as error:
            remedy = " Leave the line out for the default." if value is None else ""
            raise ValueError(f"{file}: `{name}: {_yaml(value)}` must be {error}.{remedy}") from None
    return config


def _read_yaml(file: Path) -> Any:
    if file.is_dir():
        raise ValueError(f"`--config {file}` is a folder; name a YAML file, such as {file / 'quickstart.yaml'}.")
    try:
        with open(file, encoding="utf-8") as stream:
            return yaml.load(stream, _Loader)
    except FileNotFoundError:
        raise ValueError(f"`--config {file}`: there is no such file.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error.reason}).") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no valid YAML: {' '.join(str(error).split())}.") from None
    except (ValueError, RecursionError) as error:  # a date that does not exist, a thousand brackets
        raise ValueError(f"{file} is no valid YAML: {first_line(error)}.") from None


def _unknown(name: str, known: Iterable[str], dashes: str = "") -> str:
    if name in REMOVED_SETTINGS:
        return f"`{dashes}{name}` is gone: {REMOVED_SETTINGS[name]}."
    if name.startswith("replay_"):
        return f"`{dashes}{name}` is unknown here: replay is a part of correction optimization alone."
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"; did you mean `{dashes}{close[0]}`?" if close else "."
    return f"`{dashes}{name}` is unknown{guess} `--help` lists the settings."


def _as_hinted(value: Any, hint: Any) -> Any:
    """
    A value of a YAML file as the setting's type hint wants it. Texts are left to argparse, which reads them as it
    reads the command line (YAML takes `1e-4` for a text).

    Raises:
        ValueError: If it does not fit; the message says what the setting must be.
    """
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [typing.get_origin(option) or option for option in options]
    if Any in kinds or (type(value) in kinds and isinstance(value, bool | dict | None)):
        return value
    fitted = None
    if isinstance(value, bool):
        fitted = _boolean_as(value, kinds)
    elif isinstance(value, int | float):
        fitted = _number_as(value, kinds)
    elif isinstance(value, str) and not {list, dict, type(None)} >= set(kinds):
        fitted = value
    elif isinstance(value, list | str) and list in kinds:  # a list of one may be written without brackets
        fitted = _list_as([value] if isinstance(value, str) else value, options[kinds.index(list)])
    if fitted is None:
        raise ValueError(_wanted(options, kinds))
    return fitted


def _boolean_as(value: bool, kinds: Sequence[Any]) -> str | None:
    if value is False and any(member.value == "no" for kind in _enums(kinds) for member in kind):
        return "no"  # YAML reads a bare `no` as false
    return str(value).lower() if str in kinds else None


def _number_as(value: float, kinds: Sequence[Any]) -> float | str | None:
    if isinstance(value, int) and int in kinds:
        return value
    if float in kinds:
        return float(value)
    return str(value) if str in kinds else None


def _list_as(values: list, hint: Any) -> list | None:
    inner = (typing.get_args(hint) or (Any,))[0]
    if inner not in (int, float, str):
        return values
    if not all(isinstance(item, int | float | str) for item in values):
        return None
    try:
        return [inner(item) for item in values]
    except ValueError:
        return None


def _enums(kinds: Sequence[Any]) -> list[type[enum.Enum]]:
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)]


def _wanted(options: Sequence[Any], kinds: Sequence[Any]) -> str:
    """What a setting must be, in words."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    wanted = [words[kind] for kind in kinds if kind in words] + ["text"] * bool(_enums(kinds))
    for option, kind in zip(options, kinds, strict=True):
        if kind is list:
            of = {int: " of whole numbers", float: " of numbers", str: " of texts"}
            wanted.append("a list" + of.get((typing.get_args(option) or (Any,))[0], ""))
        elif kind is typing.Literal:
            wanted.append(f"one of {', '.join(map(str, typing.get_args(option)))}")
    return " or ".join(dict.fromkeys(wanted))


def _yaml(value: Any) -> str:
    return " ".join(yaml.safe_dump(value, default_flow_style=True, width=1_000).removesuffix("...\n").split())[:200]


def _check_numbers(part: Any) -> None:
    """What no dataclass of TRL or transformers looks at, and what would end in a traceback, or in weights of NaN."""
    for name, value in vars(part).items():
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"`{name}` is not a number (NaN).")
    rate = getattr(part, "learning_rate", 0.0)
    if not 0 <= rate < math.inf:
        raise ValueError(f"`learning_rate={rate}` must be a positive number, such as 1e-5.")
    for name in ("seed", "data_seed"):
        value = getattr(part, name, None)
        if value is not None and not 0 <= value < 2**32:
            raise ValueError(f"`{name}={value}` must lie between 0 and 4294967295.")


def _adapt_learning_rate(parts: Sequence[Any], given: Iterable[str]) -> None:
    """An adapter learns little at a default that is meant for all the weights."""
    if "learning_rate" in given or not any(getattr(part, "use_peft", False) for part in parts):
        return
    for part in parts:
        if hasattr(part, "learning_rate"):
            part.learning_rate *= ADAPTER_LEARNING_RATE_FACTOR
            if part.process_index == 0:
                print(
                    f"`learning_rate` is not set: {part.learning_rate:g} for the adapter, "
                    f"{ADAPTER_LEARNING_RATE_FACTOR} times the default for full fine-tuning."
                )


# --------------------------------------------------------------------------------------------------------------------
# A run
# --------------------------------------------------------------------------------------------------------------------


def silence_noise() -> None:
    """Silence the few messages of other libraries in `NOISE_LOGGED` and `NOISE_WARNED`."""
    logger, start = NOISE_LOGGED
    logging.getLogger(logger).addFilter(lambda record: not record.getMessage().startswith(start))
    for message, category in NOISE_WARNED:
        warnings.filterwarnings("ignore", re.escape(message), category)


silence_noise()  # before `transformers.Trainer` is imported, which loads bitsandbytes


def run(main: Callable, *args: Any) -> None:
    """
    Run a recipe. An error that is meant for the user ends it with its sentence instead of a traceback.

    Args:
        main (`Callable`):
            The recipe.
        *args:
            Its arguments.

    Raises:
        SystemExit: With the sentence.
    """
    from .signals import end_in_order  # loads torch, which `--help` does without

    end_in_order()
    try:
        main(*args)
    except (BadInput, TeacherFailed) as error:
        raise SystemExit(f"Error: {error}") from None
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", 0)):  # one process says it for all
            raise SystemExit(1) from None
        raise SystemExit(
            "Interrupted. What was saved stays; with checkpoints (`save_strategy: steps`, or `save_on_signal: true`) "
            "the run goes on with `--resume_from_checkpoint true`."
        ) from None
    except BrokenPipeError:
        # Nobody reads any more; Python would complain once more when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit("Stopped: what reads the output has ended; write the output to a file instead.") from None
    except Exception as error:
        if (reason := full_disk(error)) is None:
            raise
        raise SystemExit(
            f"Error: a file could not be written ({reason}); make room on the disk and start the recipe again: what "
            "was saved stays."
        ) from None


class TrainingRun:
    """
    What surrounds the trainer in a training recipe: folders, the Hub, names and splits are checked before a model is
    loaded; the report is written and pushed at the end.

    Args:
        script_args ([`ScriptArguments`]):
            Where the data are.
        training_args ([`~transformers.TrainingArguments`]):
            The trainer's. Its `push_to_hub` and `hub_token` are taken over.
        model_args ([`~trl.ModelConfig`]):
            The model, and how it is loaded.
        *others:
            Further arguments of the recipe, for `metrics.json`.

    Attributes:
        train, validation, test ([`~datasets.Dataset`] or `None`):
            The splits; `validation` only with `eval_strategy`, `test` only where there is one.
        embedded (`bool`):
            Whether the embedded task is trained on.
        model_name (`str`), dataset_name (`str` or, for a mixture, `list[str]`):
            Hub ids or paths.

    Raises:
        BadInput: If a folder or the data cannot be used.
        SystemExit: If the Hub cannot be pushed to.
    """

    def __init__(self, script_args: ScriptArguments, training_args: Any, model_args: ModelConfig, *others: Any):
        self._start = time.time()
        self.script_args, self.args, self.model_args, self._others = script_args, training_args, model_args, others
        output_dir, checkpoint = Path(training_args.output_dir), training_args.resume_from_checkpoint
        check_folders(output_dir, checkpoint, training_args.save_only_model)
        self._ownership = contextlib.ExitStack()  # of the folder, to the end of the run
        if training_args.process_index == 0:
            self._ownership.enter_context(owned(output_dir))
            atexit.register(self._ownership.close)
        if training_args.report_to:
            from .reporting.trackers import check_trackers

            check_trackers(training_args.report_to, training_args.model_init_kwargs)
        self._regression = None
        if script_args.regression is not None:
            from .evaluation.regression import RegressionCheck

            self._regression = RegressionCheck(
                script_args.regression,
                script_args.regression_path,
                script_args.regression_limit,
                training_args.per_device_eval_batch_size,
            )
        self._push_to, self._token = take_over_push(training_args)
        self.embedded = script_args.embedded
        self.model_name = model_args.model_name_or_path or embedded_path("tiny-carry-chat")
        self.dataset_name, elsewhere = script_args.dataset_name, script_args.test_dataset_name
        if self.embedded:
            self.dataset_name = embedded_path("carry_addition")
        if script_args.datasets is not None:
            self.dataset_name = list(dict.fromkeys(dataset.path for dataset in script_args.datasets))
            self.train, rest = script_args.load_mixture(), elsewhere
        else:
            data = self.dataset_name
            self.train = script_args.load(data, script_args.dataset_train_split, script_args.train_rows)
            rest = None if Path(data).is_file() else data  # a file holds what is trained on, and nothing else
        self.validation = self.test = None
        if training_args.eval_strategy != "no":
            if rest is None:
                raise BadInput(
                    f"`eval_strategy` is set, but all of {self._data_name()} is trained on; give a folder or a Hub "
                    "dataset with a validation split, or set `eval_strategy: 'no'`."
                )
            self.validation = script_args.load(rest, script_args.dataset_validation_split)
        if (elsewhere or rest) is not None:
            function = "test_data_function" if script_args.test_data_function else "data_function"
            split, n_rows = script_args.dataset_test_split, script_args.test_rows
            self.test = script_args.load(elsewhere or rest, split, n_rows, function)

    def _data_name(self) -> str:
        names = [self.dataset_name] if isinstance(self.dataset_name, str) else self.dataset_name
        return " + ".join(public_name(name) for name in names)

    def function(
        self, setting: str, embedded: str | None = None, required: bool = False, settings: str | None = None
    ) -> Callable | None:
        """[`named_function`] of the recipe's own arguments."""
        return named_function(self.script_args, setting, embedded, required, settings)

    def trainer_kwargs(self, numbers: Mapping[str, str]) -> dict[str, Any]:
        """
        What every trainer takes: model, arguments, data, quantization, adapter and callbacks.

        Args:
            numbers (`Mapping[str, str]`):
                What is shown while it trains; see [`~reporting.terminal.ReadableProgress`].

        Raises:
            BadInput: If there is no such model.
        """
        from trl import get_peft_config, get_quantization_config

        from .policy.loading import is_adapter
        from .reporting.terminal import ReadableProgress
        from .signals import SaveOnSignal

        load_kwargs = {
            "revision": self.model_args.model_revision,
            "attn_implementation": self.model_args.attn_implementation,
            "dtype": self.model_args.dtype,
            **(self.args.model_init_kwargs or {}),
        }
        callbacks = [SaveOnSignal()] if self.script_args.save_on_signal else []
        if not self.args.disable_tqdm:
            callbacks.append(ReadableProgress(numbers, self.script_args.log_format))
        common = {
            "args": self.args,
            "train_dataset": self.train,
            "callbacks": callbacks or None,
        }
        if is_adapter(self.model_name, load_kwargs["revision"]):
            return common | self._adapter_to_train_on(load_kwargs)
        check_model(self.model_name, self.model_args.model_revision, self.args.trust_remote_code)
        self.args.model_init_kwargs = load_kwargs
        peft_config = get_peft_config(self.model_args)
        modules = peft_config.target_modules if peft_config is not None else None
        if isinstance(modules, str) and re.fullmatch(r"\w+", modules):
            peft_config.target_modules = {modules}  # ModelConfig made a pattern of the one name
        return common | {
            "model": self.model_name,
            "quantization_config": get_quantization_config(self.model_args),
            "peft_config": peft_config,
        }

    def _adapter_to_train_on(self, load_kwargs: dict[str, Any]) -> dict[str, Any]:
        """An adapter is loaded on its base and trained on; its own shape counts, not the one of the arguments."""
        from accelerate import PartialState
        from trl import get_quantization_config

        from .policy.loading import load_policy

        quantization = get_quantization_config(self.model_args)
        if quantization is not None:
            load_kwargs["device_map"] = {"": PartialState().device}
        model, tokenizer = load_policy(
            self.model_name, trainable=True, **load_kwargs, quantization_config=quantization
        )
        self.args.model_init_kwargs = None
        if self.args.process_index == 0:
            print(f"{self.model_name} is an adapter: it is trained on, and the `lora_...` settings are not used.")
        return {"model": model, "processing_class": tokenizer}

    def evaluate(self, trainer: Any, when: str, evaluation: Callable) -> Any:
        """
        Evaluate on the test problems, and say so.

        Args:
            trainer ([`~transformers.Trainer`]):
                Whose model is evaluated. Where it shards the weights nothing is: they would have to be gathered for
                each batch, by all processes in step.
            when (`str`):
                `"before"` or `"after"` training.
            evaluation (`Callable`):
                Called with the test problems; returns an [`~evaluation.Evaluation`].

        Returns:
            What `evaluation` returned; `None` where nothing is evaluated.
        """
        is_measured = self.test is not None or self._regression is not None
        if is_measured and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            self.test = self._regression = None
            trainer.accelerator.print("Sharded training: evaluate the saved model with evaluate.py, before and after.")
        from .reporting.terminal import show_readable_progress
        from .reporting.trackers import guard_trackers

        show_readable_progress(trainer)
        if when == "before":
            trainer.accelerator.print(self.summary(len(trainer.train_dataset)))
        found = None
        if self.test is not None:
            trainer.accelerator.print(f"Evaluating {when} training ...")
            found = evaluation(self.test)
        if self._regression is not None:
            self._regression.measure(trainer, when)
        if when == "before":
            guard_trackers(trainer, keep_open=True, examples=[] if found is None else found.examples)
        return found

    def summary(self, n_rows: int) -> str:
        """One line: what is trained on what."""
        n_test = "not evaluated (no test problems)" if self.test is None else f"{len(self.test)} test problems"
        return f"{public_name(self.model_name)} on {self._data_name()}: {n_rows} rows, {n_test}"

    def finish(
        self,
        trainer: Any,
        before: Any,
        after: Any,
        panels: Sequence[tuple] | None = None,
        log_history: Sequence[dict[str, float]] | None = None,
        **more: Any,
    ) -> None:
        """
        Write pictures, `metrics.json` and the model card, and push the folder if that was asked for.

        Args:
            trainer:
                One with `card_notes`.
            before, after ([`~evaluation.Evaluation`], *optional*):
                From [`evaluate`].
            panels (`Sequence[tuple]`, *optional*):
                Panels of the learning curves; see [`~reporting.plots.plot_learning_curves`].
            log_history (`list[dict]`, *optional*):
                Defaults to the trainer's.
            **more:
                Further entries of `metrics.json`.
        """
        from .reporting.run_report import write_report  # draws with matplotlib, which `--help` does without
        from .reporting.trackers import log_report
        from .reporting.trainer_card import card_facts

        if trainer.accelerator.is_main_process:
            write_report(
                Path(self.args.output_dir),
                log_history=trainer.state.log_history if log_history is None else log_history,
                before=before,
                after=after,
                seconds=time.time() - self._start,
                config=as_dict(self.script_args, *self._others, self.args, self.model_args),
                panels=panels,
                more=more if self._regression is None else more | {"regression": self._regression.setup},
                regression=None if self._regression is None else self._regression.found(),
                dataset_name=self.dataset_name,
                license="apache-2.0" if self.embedded and self.model_args.model_name_or_path is None else None,
                **{**card_facts(trainer, self._push_to), "base_model": self.model_name},
            )
            log_report(trainer, [] if after is None else after.examples, Path(self.args.output_dir))
            if self._push_to:
                push_folder(self.args.output_dir, self._push_to, self.args.hub_private_repo, self._token)
        self._ownership.close()
        end_processes(trainer)


def end_processes(trainer: "Trainer") -> None:
    """
    Ends a launched run's talk between its processes, in all of them at once.

    `end_training` alone leaves gloo's threads alive as long as the wrapped model holds the process group. One of them
    that drops a tensor while the interpreter shuts down aborts the process, after everything is done.
    """
    trainer.accelerator.wait_for_everyone()
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()


def check_model(name: str, revision: str = "main", trust_remote_code: bool = False) -> None:
    """
    See that there is a model of this name, before anything expensive.

    Args:
        name (`str`):
            Hub id or folder.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that comes with it may be run.

    Raises:
        BadInput: If there is none.
    """
    try:
        AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"`model_name_or_path={name!r}` cannot be loaded ({first_line(error).rstrip('.')}); give a Hub id, or a "
            "folder with a config.json."
        ) from error


def check_folders(output_dir: Path, checkpoint: str | None = None, weights_only: bool = False) -> None:
    """
    See that a run can write where it has to, and that the checkpoint to resume from exists, before anything expensive.

    Args:
        output_dir (`Path`):
            Where the run writes.
        checkpoint (`str`, *optional*):
            `resume_from_checkpoint`.
        weights_only (`bool`, *optional*, defaults to `False`):
            `save_only_model`.

    Raises:
        BadInput: If one of them cannot be used.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise BadInput(f"`output_dir={str(output_dir)!r}` cannot be written to: {error.strerror}.") from None
    checkpoint_to_resume_from(checkpoint, output_dir, weights_only=weights_only)


def check_push(repo_id: str, private: bool | None, token: str | None, repo_type: str = "model") -> None:
    """
    Create the repository that a run will be pushed to, before the run.

    Args:
        repo_id (`str`):
            Where to.
        private (`bool`, *optional*):
            Whether a new repository is private; by default as the account says.
        token (`str`, *optional*):
            Defaults to the saved login.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"dataset"`.

    Raises:
        SystemExit: With one sentence, if the Hub cannot be reached or refuses.
    """
    try:
        HfApi(token=token).create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True)
    except Exception as error:
        raise SystemExit(
            f"`push_to_hub` is set, but {repo_id!r} cannot be pushed to ({first_line(error)}). Log in with `hf auth "
            "login`, or train without `push_to_hub` and push the folder afterwards."
        ) from None


def take_over_push(training_args: Any) -> tuple[str | None, str | None]:
    """
    A recipe pushes at its end, with the card and the pictures; its trainer, whose own pushes would carry the token in
    `training_args.bin`, is not to know of it. The repository is created now, so that what is wrong with it is said
    before the run.

    Args:
        training_args ([`~transformers.TrainingArguments`]):
            Changed in place: `push_to_hub` and `hub_token` are taken out.

    Returns:
        `tuple`: Where to push (`None`: nowhere) and the token.

    Raises:
        SystemExit: From [`check_push`].
    """
    token = training_args.hub_token
    push_to = None
    if training_args.push_to_hub:
        push_to = training_args.hub_model_id or Path(training_args.output_dir).resolve().name
    training_args.push_to_hub, training_args.hub_token = False, None
    if push_to and training_args.process_index == 0:
        check_push(push_to, training_args.hub_private_repo, token)
    return push_to, token


def push_folder(folder: str, repo_id: str, private: bool | None, token: str | None, repo_type: str = "model") -> None:
    """
    Upload a finished run (not its checkpoints) to the Hub. Its files stay as they are, whatever happens; where one
    names a local model, what is uploaded is a copy without the path.

    Args:
        folder (`str`):
            What the recipe wrote.
        repo_id (`str`):
            Where to.
        private (`bool`, *optional*):
            Whether a new repository is private; by default as the account says.
        token (`str`, *optional*):
            Defaults to the saved login.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"dataset"`.

    Raises:
        SystemExit: With one sentence that says how to try again, if the Hub cannot be reached or refuses.
    """
    from .reporting.privacy import NOT_PUSHED, publishable_folder, redact_secrets, upload_publishable

    try:
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True).repo_id
        upload_publishable(api, folder, repo_id=repo_id, repo_type=repo_type, commit_message="Model, metrics and card")
    except Exception as error:  # network, permissions, quota: the run is safe on disk in every case
        left_out = " ".join(f"--exclude '{pattern}'" for pattern in NOT_PUSHED)
        raise SystemExit(
            f"The push to {repo_id!r} failed ({redact_secrets(first_line(error))}). Nothing is lost: everything is "
            f"in {folder}. Log in with `hf auth login` if needed, and push it with `hf upload {repo_id} "
            f"{shlex.quote(str(publishable_folder(folder)))} . --repo-type {repo_type} {left_out}`."
        ) from None
    print(f"Pushed to https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}")


def as_dict(*configs: Any) -> dict[str, Any]:
    """Several dataclasses as one flat dict, for `metrics.json`."""
    merged = {}
    for config in configs:
        merged.update(config.to_dict() if hasattr(type(config), "to_dict") else vars(config))
    return merged
