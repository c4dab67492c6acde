"""Sampling responses with transformers' `generate`: ids in, ids out, nothing decoded."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import pad


def sampling_config(
    tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """
    Plain sampling from the policy: nothing is cut off its distribution, and no setting of the model's own
    `generation_config.json` is taken over silently.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer, with a padding token.
        stop_ids (`Sequence[int]`):
            From [`~tokenization.stop_token_ids`].
        max_new_tokens (`int`):
            Most tokens of a completion.
        temperature (`float`):
            0 is greedy decoding.
    """
    sampling = {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature}
    if temperature != 0:
        sampling |= {"top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=list(stop_ids),
        disable_compile=True,
        repetition_penalty=1.0,  # what is left out is taken from the model's generation_config.json
        **sampling,
    )


def generate_completions(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    generation_config: GenerationConfig,
    batch_size: int | None = None,
) -> list[list[int]]:
    """
    Complete each prompt once.

    Prompts are batched by length, so that little is padded; results come back in the order of the prompts.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy, unwrapped.
        prompt_ids (`Sequence[Sequence[int]]`):
            Token ids of the prompts; none empty.
        generation_config ([`~transformers.GenerationConfig`]):
            Sampling parameters; `pad_token_id` and `eos_token_id` (an `int` or a list) must be set.
        batch_size (`int`, *optional*):
            Most prompts per call of `generate`; by default all of them.

    Returns:
        `list[list[int]]`: Ids of each completion, up to and including its first stop token; one that was cut off by
        the length limit has none.
    """
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    stop_ids = generation_config.eos_token_id
    stop_ids = {stop_ids} if isinstance(stop_ids, int) else set(stop_ids)
    completions: list[list[int]] = [[] for _ in prompt_ids]
    for start in range(0, len(order), batch_size or max(len(order), 1)):
        rows = order[start : start + (batch_size or len(order))]
        tensors = [torch.tensor(prompt_ids[i]) for i in rows]
        input_ids = pad(tensors, padding_value=generation_config.pad_token_id, padding_side="left")
        attention_mask = pad([torch.ones_like(t) for t in tensors], padding_value=0, padding_side="left")
        with torch.no_grad():
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=generation_config,
            )
        for i, ids in zip(rows, output[:, input_ids.size(1) :].tolist(), strict=True):
            end = next((position for position, token in enumerate(ids) if token in stop_ids), len(ids) - 1)
            completions[i] = ids[: end + 1]
    return completions
