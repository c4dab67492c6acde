"""How probable a model finds texts that stand already."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import pad, selective_log_softmax


@torch.no_grad()
def sequence_log_probs(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    pad_token_id: int,
) -> list[float]:
    """
    log π(completion | prompt), summed over the completion's tokens, in nats.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        prompt_ids (`Sequence[Sequence[int]]`):
            Token ids of the prompts; none empty.
        completion_ids (`Sequence[Sequence[int]]`):
            Token ids of the completions, stop token included; none empty.
        pad_token_id (`int`):
            Id to pad with.

    Returns:
        `list[float]`, one per completion.
    """
    rows = [
        torch.tensor([*prompt, *completion]) for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
    ]
    input_ids = pad(rows, padding_value=pad_token_id, padding_side="left").to(model.device)
    attention_mask = pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left").to(model.device)
    # (B, T): padded on the left, so that all completions end in the last column
    n_kept = max(len(completion) for completion in completion_ids)
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=n_kept + 1,  # only what predicts a completion token reaches the LM head
        use_cache=False,
    ).logits[:, :-1]
    log_probs = selective_log_softmax(logits, input_ids[:, -n_kept:])  # (B, C), C tokens of the longest completion
    lengths = torch.tensor([len(completion) for completion in completion_ids], device=model.device)
    mask = torch.arange(n_kept, device=model.device) >= n_kept - lengths[:, None]  # (B, C): its own completion
    return (log_probs.float() * mask).sum(1).tolist()
