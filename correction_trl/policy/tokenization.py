"""From text to token ids and back, in one place, so that training, sampling and evaluation see the same tokens.

The rules. A prompt is rendered by the chat template with its generation prompt (or tokenised as it is, when plain). A
completion is what the model would have to emit after that: its text, then one stop token. Sampled responses are never
decoded and re-encoded: they are trained as the ids that were sampled.
"""

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

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


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> list[int]:
    """Every token id that ends a response: the tokenizer's end-of-sequence token first, then those the model
    declares."""
    declared = generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return [tokenizer.eos_token_id, *(token for token in declared if token != tokenizer.eos_token_id)]


def end_of_turn_token_id(tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], conversational: bool) -> int:
    """
    The stop token that ends an assistant's turn: the one the chat template writes, else the end-of-sequence token.

    Some families end a turn with another token than their end-of-sequence token (Gemma's `<end_of_turn>`); a
    correction has to end as the policy's own responses do.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        stop_ids (`Sequence[int]`):
            From [`stop_token_ids`].
        conversational (`bool`):
            Whether the prompts are lists of messages.
    """
    if conversational:
        prompt = [{"role": "user", "content": "a"}]
        try:
            turn = tokenizer.apply_chat_template(
                [*prompt, {"role": "assistant", "content": "b"}], tokenize=True, return_dict=True
            )["input_ids"]
        except TemplateError:  # a template for prompts alone
            return stop_ids[0]
        opened = tokenizer.apply_chat_template(prompt, tokenize=True, return_dict=True, add_generation_prompt=True)
        for token in turn[len(opened["input_ids"]) :]:
            if token in stop_ids:
                return token
    return stop_ids[0]


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
        ids = tokenizer(prompt)["input_ids"]
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
            ids = ids[:-1]  # some tokenizers end every text; the policy has to go on from here
        return prompt, ids
    try:
        text = tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True, **chat_template_kwargs
        )
    except TemplateError as error:
        raise BadInput(f"The chat template refuses the prompt {str(prompt)[:200]}: {error}.") from error
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    prompt_text: str,
    prompt_ids: list[int],
    completion: str,
    stop_token_id: int,
) -> list[int]:
    """
    Token ids of a completion that was given as text (a teacher's), its stop token included.

    The text is tokenised together with its prompt, so that a tokenizer whose pieces depend on what stands before them
    gives the ids that the model would have emitted. Where tokens merge across the boundary, the completion is
    tokenised alone.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        prompt (`str` or `list[dict]`):
            The prompt as it stands in the dataset.
        prompt_text (`str`):
            The rendered prompt, from [`tokenize_prompt`].
        prompt_ids (`list[int]`):
            Its ids, from [`tokenize_prompt`].
        completion (`str`):
            The text to encode.
        stop_token_id (`int`):
            From [`end_of_turn_token_id`].

    Returns:
        `list[int]`.
    """
    add_special_tokens = isinstance(prompt, str)  # a chat template writes its special tokens itself
    ids = tokenizer(prompt_text + completion, add_special_tokens=add_special_tokens)["input_ids"]
    if ids[: len(prompt_ids)] == prompt_ids:
        ids = ids[len(prompt_ids) :]
    else:
        ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    if ids and ids[-1] == stop_token_id:  # some tokenizers append it to plain text
        return ids
    return [*ids, stop_token_id]


def decode(tokenizer: PreTrainedTokenizerBase, completion_ids: Sequence[Sequence[int]]) -> list[str]:
    """Texts of sampled responses, without special tokens."""
    return tokenizer.batch_decode([list(ids) for ids in completion_ids], skip_special_tokens=True)
