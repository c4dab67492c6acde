"""What every recipe does around its trainer: read the configuration, load the data, push the result."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import HfApi
from trl import TrlParser

from .data_utils import public_name as public_name
from .errors import BadInput, TeacherFailed


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
    argv = list(sys.argv[1:] if argv is None else argv)
    for i, argument in enumerate(argv):  # TrlParser knows only the two-word form
        if argument.startswith("--config="):
            argv[i : i + 1] = ["--config", argument.partition("=")[2]]
            break
    if not any(argument == "--config" or argument.startswith("--model_name_or_path") for argument in argv):
        argv = ["--config", str(default_config), *argv]
    try:
        # Without abbreviations: a mistyped `--learning_rat` must not set the learning rate
        return _Parser(dataclass_types, allow_abbrev=False).parse_args_and_config(args=argv)
    except (ValueError, FileNotFoundError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        if "fail_with_unknown_args" in message:  # advice for the writer of a recipe, not for its user
            message = message.partition(". Please remove")[0] + ". `--help` lists the arguments."
        elif "bf16" in message:
            message = (
                "bfloat16 is TRL's default and there is no GPU; set `bf16: false` (float32), or `use_cpu: true` "
                "(bfloat16 on the CPU)."
            )
        raise SystemExit(f"Configuration: {message}") from error


class _Parser(TrlParser):
    """Ends with the sentence alone: the usage of some two hundred arguments would bury it."""

    def error(self, message: str):
        raise SystemExit(f"Configuration: {message}. `--help` lists the arguments.")


def load_split(name: str, config: str | None, split: str, max_rows: int | None = None) -> Dataset:
    """
    One split of a dataset: a Hub id, a local folder, or a `.jsonl`, `.json`, `.csv` or `.parquet` file.

    Args:
        name (`str`):
            Hub id, folder or file.
        config (`str`, *optional*):
            Name of the dataset's configuration.
        split (`str`):
            Name of the split; a file has one, `"train"`, whatever is asked for.
        max_rows (`int`, *optional*):
            Keep the first so many rows.

    Raises:
        SystemExit: With one sentence, if the file is empty or the split does not exist.
    """
    path = Path(name)
    if path.is_file():
        loader = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}.get(path.suffix)
        if loader is None:
            raise SystemExit(f"{name}: unknown kind of file; .jsonl, .json, .csv and .parquet can be read.")
        if path.stat().st_size == 0:
            raise SystemExit(f"{name}: the file is empty.")
        try:
            dataset = load_dataset(loader, data_files=str(path), split="train")
        except Exception as error:
            reason = _first_line(error.__cause__ or error)
            raise SystemExit(f"{name}: the file cannot be read as {path.suffix} ({reason}).") from error
    else:
        try:
            dataset = load_dataset(name, config)
        except Exception as error:
            raise SystemExit(f"{name}: no such dataset, or it cannot be loaded ({_first_line(error)}).") from error
        if isinstance(dataset, DatasetDict):
            if split not in dataset:
                raise SystemExit(
                    f"{name} has no split {split!r}; it has {', '.join(dataset)}. Name the splits to use, for example "
                    "with `--dataset_test_split`."
                )
            dataset = dataset[split]
    return dataset if max_rows is None else dataset.select(range(min(max_rows, len(dataset))))


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
    try:
        main(*args)
    except (BadInput, TeacherFailed) as error:
        raise SystemExit(f"Error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(
            "Interrupted. What was saved stays; with checkpoints (`save_strategy: steps`) the run goes on with "
            "`--resume_from_checkpoint`."
        ) from None


def check_folders(output_dir: Path, checkpoint: str | None) -> None:
    """
    See that a run can write where it has to, and that the checkpoint to resume from exists, before anything expensive.

    Args:
        output_dir (`Path`):
            Where the run writes.
        checkpoint (`str`, *optional*):
            `resume_from_checkpoint`.

    Raises:
        BadInput: If one of them cannot be used.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise BadInput(f"`output_dir={str(output_dir)!r}` cannot be written to: {error.strerror}.") from None
    if checkpoint is not None and not (Path(checkpoint) / "trainer_state.json").is_file():
        found = sorted(str(path) for path in output_dir.glob("checkpoint-*"))
        raise BadInput(
            f"`resume_from_checkpoint={checkpoint!r}` is no checkpoint; in {output_dir} there is "
            f"{', '.join(found) or 'none'}."
        )


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
            f"`push_to_hub` is set, but {repo_id!r} cannot be pushed to ({_first_line(error)}). Log in with `hf auth "
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


def set_model_init_kwargs(training_args: Any, model_args: Any) -> None:
    """What a trainer that is given a model's name needs to load it as `ModelConfig` says. Changed in place."""
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def push_folder(folder: str, repo_id: str, private: bool | None, token: str | None, repo_type: str = "model") -> None:
    """
    Upload a finished run (not its checkpoints) to the Hub. The folder stays as it is, whatever happens.

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
    try:
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repo_id,
            repo_type=repo_type,
            folder_path=folder,
            commit_message="Model, metrics and card",
            ignore_patterns=["checkpoint-*/*", "checkpoint-*", "round_*/*", "training_args.bin", "runs/*"],
        )
    except Exception as error:  # network, permissions, quota: the run is safe on disk in every case
        raise SystemExit(
            f"The push to {repo_id!r} failed ({_first_line(error)}). Nothing is lost: everything is in {folder}. Log "
            f"in with `hf auth login` if needed, and push it with `hf upload {repo_id} {folder} . --repo-type "
            f"{repo_type} --exclude 'checkpoint-*/*'`."
        ) from None
    print(f"Pushed to https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}")


def as_dict(*configs: Any) -> dict[str, Any]:
    """Several dataclasses as one flat dict, for `metrics.json`."""
    merged = {}
    for config in configs:
        merged.update(config.to_dict() if hasattr(type(config), "to_dict") else vars(config))
    return merged
