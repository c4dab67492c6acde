"""Stored pairs as token ids: the same ids as if the policy had sampled the response and a teacher corrected it."""

from typing import Any

from ..data_utils import chat_template_kwargs, message_text
from ..errors import BadInput
from ..policy.completions import CompletionEncoder
from ..policy.tokenization import tokenize_prompt


def tokenize_pair(row: dict[str, Any], index: int, encode: CompletionEncoder, name: str) -> dict[str, list[int]]:
    """
    Args:
        row (`dict`):
            With `prompt`, `rejected` (the response) and `chosen` (its correction).
        index (`int`):
            Its number, for messages.
        encode ([`~correction_trl.policy.completions.CompletionEncoder`]):
            With the policy's tokenizer.
        name (`str`):
            What messages call the dataset.

    Returns:
        `dict[str, list[int]]`: `prompt_ids`, `rejected_ids` and `chosen_ids`.

    Raises:
        BadInput: If a text cannot be trained as it is; the message names the row.
    """
    prompt, kwargs = row["prompt"], chat_template_kwargs(row)
    what = "prompt"
    try:
        prompt_text, prompt_ids = tokenize_prompt(encode.tokenizer, prompt, **kwargs)
        what = "response"
        response = _encode(encode, row["rejected"], prompt, prompt_text, prompt_ids, kwargs, None)
        what = "correction"
        correction = _encode(encode, row["chosen"], prompt, prompt_text, prompt_ids, kwargs, response)
    except BadInput as error:
        raise BadInput(f"Row {index} of the {name} dataset, {what}: {error}") from error
    return {"prompt_ids": prompt_ids, "rejected_ids": response, "chosen_ids": correction}


def _encode(encode, completion, prompt, prompt_text, prompt_ids, kwargs, own_ids) -> list[int]:
    if isinstance(completion, str):
        text = completion
    else:
        messages = [{key: value for key, value in message.items() if value is not None} for message in completion]
        if len(messages) > 1 or set(messages[0]) - {"role", "content"}:
            return encode.messages(prompt, prompt_text, messages, kwargs)
        text = message_text(messages)
    return encode(prompt, prompt_text, prompt_ids, text, kwargs, own_ids)
