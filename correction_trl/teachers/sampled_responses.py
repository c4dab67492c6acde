"""Responses of a model to prompts, to be corrected: sampled once, and kept, so that a run that is started again asks
the teacher about the same ones."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, get_quantization_config

from ..data_utils import check_dataset, public_name
from ..errors import BadInput
from ..policy.generation import Sampler, numbered
from ..policy.tokenization import chat_template_kwargs, check_tokenizer, tokenize_prompt


def sampled_responses(
    dataset: Dataset, model_name: str, arguments: Any, model_args: ModelConfig, cache: Path
) -> Dataset:
    """
    A dataset with a column `response`, sampled from a model.

    Args:
        dataset ([`~datasets.Dataset`]):
            Column `prompt`, plain or conversational, and whatever goes with it.
        model_name (`str`):
            Hub id or folder.
        arguments:
            `max_completion_length`, `temperature`, `generation_batch_size` and `seed`.
        model_args ([`~trl.ModelConfig`]):
            How the model is loaded.
        cache (`Path`):
            Folder in which the responses are kept, under a name that depends on all of the above.

    Raises:
        BadInput: If a prompt is not usable, or the model cannot be loaded.
    """
    check_dataset(dataset, "the dataset", teacher="any")
    sampling = {name: getattr(arguments, name) for name in ("max_completion_length", "temperature", "seed")}
    loading = {name: getattr(model_args, name) for name in ("model_revision", "dtype", "load_in_4bit")}
    settings = json.dumps([dataset[:], model_name, sampling, loading, arguments.generation_batch_size], default=str)
    name = hashlib.sha256(settings.encode()).hexdigest()[:12]
    file = cache / f"responses-{name}.parquet"
    if file.is_file():
        return Dataset.from_parquet(str(file))
    print(f"Sampling {len(dataset)} responses of {public_name(model_name, 'the model')} ...")
    responses = _sample(dataset, model_name, arguments, model_args)
    dataset = dataset.add_column("response", responses)
    unfinished = file.with_suffix(".tmp")
    dataset.to_parquet(unfinished)
    os.replace(unfinished, file)
    return Dataset.from_parquet(str(file))


@torch.no_grad()
def _sample(dataset: Dataset, model_name: str, arguments: Any, model_args: ModelConfig) -> list[str]:
    quantization = get_quantization_config(model_args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name, revision=model_args.model_revision)
        model = AutoModelForCausalLM.from_pretrained(
            model_name,
            revision=model_args.model_revision,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            quantization_config=quantization,
            device_map={"": device},
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"The model {model_name!r} cannot be loaded ({str(error).splitlines()[0]}).") from None
    check_tokenizer(tokenizer, conversational=not isinstance(dataset[0]["prompt"], str))
    prompt_ids = [tokenize_prompt(tokenizer, row["prompt"], **chat_template_kwargs(row))[1] for row in dataset]
    sampler = Sampler(
        model,
        tokenizer,
        arguments.max_completion_length,
        arguments.temperature,
        batch_size=arguments.generation_batch_size,
        seed=arguments.seed,
    )
    return sampler(prompt_ids, numbered(range(len(prompt_ids)))).texts
