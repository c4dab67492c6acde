"""Stored pairs as token ids: the same ids as if the policy had sampled the response and a teacher corrected it."""

from typing import Any

from ..data_utils import chat_template_kwargs
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
        response = encode.reply(prompt, prompt_text, prompt_ids, row["rejected"], kwargs)
        what = "correction"
        correction = encode.reply(prompt, prompt_text, prompt_ids, row["chosen"], kwargs, response)
    except BadInput as error:
        raise BadInput(f"Row {index} of the {name} dataset, {what}: {error}") from error
    return {"prompt_ids": prompt_ids, "rejected_ids": response, "chosen_ids": correction}
