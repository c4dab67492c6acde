"""Responses of a model to prompts, to be corrected: sampled once, and kept, so that a run that is started again asks
the teacher about the same ones."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import ModelConfig, get_quantization_config

from ..data_utils import chat_template_kwargs, check_dataset, message_text, public_name
from ..errors import BadInput
from ..policy.generation import Sampler, numbered
from ..policy.loading import load_policy
from ..policy.rollout import Rollouts
from ..policy.tokenization import check_tokenizer, tokenize_prompt


@dataclass
class ResponseArguments:
    """Where the responses come from that a teacher corrects: a column, or a model."""

    response_column: str = field(
        default="response", metadata={"help": "Column with the responses; without it they are sampled."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Most tokens of a sampled response."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the sampled responses; 0: greedy."})
    generation_batch_size: int = field(default=64, metadata={"help": "Most prompts in one call of `generate`."})
    seed: int = field(default=0, metadata={"help": "Of the sampled responses."})


def with_responses(
    dataset: Dataset, arguments: ResponseArguments, model_args: ModelConfig, cache: Path
) -> tuple[Dataset, str]:
    """
    A dataset with a column `response` of texts: its own, or sampled.

    Args:
        dataset ([`~datasets.Dataset`]):
            Column `prompt`, and whatever goes with it.
        arguments ([`ResponseArguments`]):
            The column, or how to sample.
        model_args ([`~trl.ModelConfig`]):
            The model to sample from, if the column is not there.
        cache (`Path`):
            Folder in which sampled responses are kept.

    Returns:
        `tuple[Dataset, str]`: the dataset, and whose responses these are, in public.

    Raises:
        BadInput: If there are no responses and no model.
    """
    column, model = arguments.response_column, model_args.model_name_or_path
    if column not in dataset.column_names:
        if model is None:
            raise BadInput(
                f"The dataset has no column {column!r} (it has {', '.join(dataset.column_names)}); name the column "
                "with `response_column`, or a model to sample responses from with `model_name_or_path`."
            )
        return sampled_responses(dataset, model, arguments, model_args, cache), public_name(model)
    if column != "response":
        dataset = dataset.rename_column(column, "response")
    if len(dataset):
        dataset = dataset.map(lambda row: {"response": message_text(row["response"])})
    return dataset, "a language model"


def sampled_responses(
    dataset: Dataset, model_name: str, arguments: ResponseArguments, model_args: ModelConfig, cache: Path
) -> Dataset:
    """
    A dataset with a column `response`, sampled from a model.

    Args:
        dataset ([`~datasets.Dataset`]):
            Column `prompt`, plain or conversational, and whatever goes with it.
        model_name (`str`):
            Hub id or folder.
        arguments ([`ResponseArguments`]):
            How to sample.
        model_args ([`~trl.ModelConfig`]):
            How the model is loaded.
        cache (`Path`):
            Folder in which the responses are kept, each with its row, so that a run with more or fewer rows has the
            same ones.

    Raises:
        BadInput: If a prompt is not usable, or the model cannot be loaded.
    """
    check_dataset(dataset, "the dataset", teacher="any")
    sampling = {name: getattr(arguments, name) for name in ("max_completion_length", "temperature", "seed")}
    loading = {name: getattr(model_args, name) for name in ("model_revision", "dtype", "load_in_4bit")}
    file = cache / f"responses-{_digest([model_name, sampling, loading])}.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    # By the rule of seeds, a response depends on the place of its row and not on the rows beside it
    keys = [_digest([place, row["prompt"], chat_template_kwargs(row)]) for place, row in enumerate(dataset)]
    missing = [place for place, key in enumerate(keys) if key not in kept]
    if missing:
        print(f"Sampling {len(missing)} responses of {public_name(model_name, 'the model')} ...")
        responses = _sample(dataset, missing, model_name, arguments, model_args)
        kept |= {keys[place]: response for place, response in zip(missing, responses, strict=True)}
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(kept), encoding="utf-8")
        os.replace(unfinished, file)
    return dataset.add_column("response", [kept[key] for key in keys])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str, sort_keys=True).encode()).hexdigest()[:16]


@torch.no_grad()
def _sample(
    dataset: Dataset, places: list[int], model_name: str, arguments: ResponseArguments, model_args: ModelConfig
) -> list[str]:
    quantization = get_quantization_config(model_args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_policy(
        model_name,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
        device_map={"": device},
    )
    check_tokenizer(tokenizer, conversational=not isinstance(dataset[0]["prompt"], str))
    rows = dataset.select(places)
    prompt_ids = [tokenize_prompt(tokenizer, row["prompt"], **chat_template_kwargs(row))[1] for row in rows]
    sampler = Sampler(
        model,
        tokenizer,
        arguments.max_completion_length,
        arguments.temperature,
        seed=arguments.seed,
        engine=Rollouts(batch_size=arguments.generation_batch_size),
    )
    return sampler(prompt_ids, numbered(places)).texts
