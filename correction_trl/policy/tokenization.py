"""From text to token ids and back, in one place, so that training, sampling and evaluation see the same tokens.

The rules. A prompt is rendered by the chat template with its generation prompt (or tokenised as it is, when plain). A
completion is what the model would have to emit after that (`completions.py`). Sampled responses are never decoded and
re-encoded: they are trained as the ids that were sampled.
"""

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from peft import PeftModel
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import BadInput
from ..functions import Prompt


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, conversational: bool) -> None:
    """
    Refuse a tokenizer with which nothing can be trained.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        conversational (`bool`):
            Whether the prompts are lists of messages.

    Raises:
        BadInput: If there is no end-of-sequence token, or no chat template for conversational prompts.
    """
    if tokenizer.eos_token_id is None:
        raise BadInput(
            "The tokenizer has no end-of-sequence token, so a response could never end; set `tokenizer.eos_token` "
            "and pass the tokenizer as `processing_class`."
        )
    if conversational and tokenizer.chat_template is None:
        raise BadInput(
            "The prompts are conversational (lists of messages), but the tokenizer has no chat template; use a chat "
            "model, set `tokenizer.chat_template`, or give the prompts as plain text."
        )


def check_vocabulary(model: "PreTrainedModel | PeftModel", tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Refuse a tokenizer that has more tokens than the model has embeddings.

    Raises:
        BadInput: With both numbers.
    """
    n_tokens = max(tokenizer.get_vocab().values()) + 1
    embeddings = model.get_input_embeddings()
    n_embeddings = getattr(embeddings, "num_embeddings", n_tokens)  # sharded weights show their part alone
    if n_embeddings < n_tokens:
        raise BadInput(
            f"The tokenizer has {n_tokens} tokens and the model {n_embeddings} embeddings: use the model's own "
            "tokenizer, or call `model.resize_token_embeddings(len(tokenizer))`, save both, and start from there."
        )


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> list[int]:
    """Every token id that ends a response: the tokenizer's end-of-sequence token first, then those the model
    declares."""
    declared = generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return [tokenizer.eos_token_id, *(token for token in declared if token != tokenizer.eos_token_id)]


def generation_config_of(model: str | PreTrainedModel, load_kwargs: dict[str, Any] | None = None) -> GenerationConfig:
    """The generation settings of a model, also before it is loaded."""
    if not isinstance(model, str):
        return model.generation_config
    kwargs = {key: (load_kwargs or {})[key] for key in ("revision", "trust_remote_code") if key in (load_kwargs or {})}
    try:
        return GenerationConfig.from_pretrained(model, **kwargs)
    except OSError:  # it has no file of its own
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(model, **kwargs))


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text, with the special tokens that the tokenizer puts in front of it, each once; none at the end,
    from which the policy has to go on."""
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids = tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        ids = ids[:-1]
    return ids


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, **chat_template_kwargs: Any
) -> tuple[str, list[int]]:
    """
    Text and token ids after which the policy starts to write.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        prompt (`str` or `list[dict]`):
            Plain text, or messages.
        **chat_template_kwargs:
            Passed to the chat template (`tools`, `enable_thinking`, ...).

    Returns:
        `tuple[str, list[int]]`: The rendered prompt and its ids.
    """
    if isinstance(prompt, str):
        return prompt, plain_ids(tokenizer, prompt)
    try:
        text = tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True, **chat_template_kwargs
        )
    except TemplateError as error:
        raise BadInput(f"The chat template refuses the prompt {str(prompt)[:200]}: {error}.") from error
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def decode(tokenizer: PreTrainedTokenizerBase, completion_ids: Sequence[Sequence[int]]) -> list[str]:
    """Texts of sampled responses, without special tokens."""
    return tokenizer.batch_decode([list(ids) for ids in completion_ids], skip_special_tokens=True)
