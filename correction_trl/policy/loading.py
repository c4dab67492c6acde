"""Models by name: a model, or an adapter on its base, whichever folder or Hub id it is."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..data_utils import is_hub_id
from ..errors import BadInput, first_line


_NOT_THERE = {
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Whether a folder or Hub id holds an adapter and no model."""
    if Path(name).is_dir():
        return (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file()
    if not is_hub_id(name):
        return False
    return cached_file(name, "adapter_config.json", revision=revision, **_NOT_THERE) is not None


def load_policy(
    name: str, revision: str | None = None, trainable: bool = False, **kwargs: Any
) -> tuple["PreTrainedModel | PeftModel", PreTrainedTokenizerBase]:
    """
    A model and its tokenizer, by name. For an adapter the base is loaded first; it gets as many embeddings as the
    adapter was trained with.

    Args:
        name (`str`):
            Hub id or folder, of a model or of an adapter.
        revision (`str`, *optional*):
            Its branch, tag or commit.
        trainable (`bool`, *optional*, defaults to `False`):
            Whether an adapter is to be trained further.
        **kwargs:
            Passed to `from_pretrained`: `dtype`, `quantization_config`, ...

    Raises:
        BadInput: If it, or an adapter's base, cannot be loaded.
    """
    if not is_adapter(name, revision):
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
            return AutoModelForCausalLM.from_pretrained(name, revision=revision, **kwargs), tokenizer
        except (OSError, ValueError) as error:
            raise BadInput(f"The model {name!r} cannot be loaded ({first_line(error).rstrip('.')}).") from error

    config = PeftConfig.from_pretrained(name, revision=revision)
    base_name = config.base_model_name_or_path
    try:
        base = AutoModelForCausalLM.from_pretrained(base_name, **kwargs)
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(
            f"The base {base_name!r} of the adapter {name!r} cannot be loaded ({first_line(error).rstrip('.')}); name "
            "a Hub id or a folder that is there as `base_model_name_or_path` in its adapter_config.json."
        ) from error
    own_tokenizer = cached_file(name, "tokenizer_config.json", revision=revision, **_NOT_THERE) is not None
    tokenizer = AutoTokenizer.from_pretrained(name if own_tokenizer else base_name)

    weights = cached_file(name, "adapter_model.safetensors", revision=revision, **_NOT_THERE)
    if weights is None:
        raise BadInput(f"The adapter {name!r} has no adapter_model.safetensors; save it with `save_pretrained`.")
    n_tokens = base.get_input_embeddings().weight.shape[0]
    n_wanted = _n_embeddings(weights) or max(n_tokens, len(tokenizer))
    if n_wanted != n_tokens:
        base.resize_token_embeddings(n_wanted, mean_resizing=False)
    try:
        return PeftModel.from_pretrained(base, name, revision=revision, is_trainable=trainable), tokenizer
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"The adapter {name!r} does not fit its base {base_name!r} ({first_line(error)}).") from error


def _n_embeddings(weights: str) -> int | None:
    """The number of tokens that an adapter's file holds embeddings of, where it holds any."""
    with safe_open(weights, "pt") as file:
        for key in file.keys():
            shape = file.get_slice(key).get_shape()
            if len(shape) == 2 and key.endswith(".weight") and "lora_" not in key:
                if any(part in key for part in ("embed_tokens", "wte.", "lm_head")):
                    return shape[0]
    return None
