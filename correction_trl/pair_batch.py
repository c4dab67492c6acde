"""A batch of pairs as the losses read it: per-token log-probs of y and y', aligned at their first token.

However a batch lays its pairs out in rows (two rows per pair as in TRL's `DPOTrainer`, or one packed row, see
`shared_prefix.py`), it carries for each sequence an index into the flattened per-token outputs of the model, of shape
`(B, L)`, and a mask of the same shape. The losses then never see rows.
"""

from dataclasses import dataclass

import torch
from rapidfuzz.distance import Levenshtein


@dataclass
class PairLogProbs:
    """
    Per-token log-probs of a batch of pairs, token j of a sequence in column j.

    Attributes:
        response (`torch.Tensor` of shape `(B, L)`):
            log π of each token of y, in nats; 0 at padding.
        response_mask (`torch.Tensor` of shape `(B, L)`):
            1 on the tokens of y.
        correction (`torch.Tensor` of shape `(B, L')`):
            log π of each token of y', in nats; 0 at padding.
        correction_mask (`torch.Tensor` of shape `(B, L')`):
            1 on the tokens of y'.
        response_entropy (`torch.Tensor` of shape `(B, L)`, *optional*):
            Entropy of the policy at each token of y, in nats, without gradient.
    """

    response: torch.Tensor
    response_mask: torch.Tensor
    correction: torch.Tensor
    correction_mask: torch.Tensor
    response_entropy: torch.Tensor | None = None


def two_row_index(completion_mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Where the tokens of each pair stand in the per-token outputs of TRL's layout: the B corrections first, then the B
    responses, each row `[prompt | completion | padding]`.

    Args:
        completion_mask (`torch.Tensor` of shape `(2 * B, T)`):
            1 on the completion's tokens, which are contiguous.

    Returns:
        `dict[str, torch.Tensor]` with `response_index`, `response_mask`, `correction_index` and `correction_mask`, of
        shape `(B, L)`, into outputs of shape `(2 * B, T - 1)`, flattened. A completion token at position 0 has no
        predictor and is left out, as in TRL.
    """
    predicted = completion_mask[:, 1:]
    n_tokens = predicted.sum(1)
    starts = predicted.argmax(1)
    index = {}
    half = completion_mask.size(0) // 2
    for name, rows in (("correction", slice(None, half)), ("response", slice(half, None))):
        columns = torch.arange(max(int(n_tokens[rows].max()), 1), device=completion_mask.device)
        mask = columns < n_tokens[rows, None]
        row_offsets = torch.arange(completion_mask.size(0), device=completion_mask.device)[rows, None]
        positions = row_offsets * predicted.size(1) + starts[rows, None] + columns
        index[f"{name}_index"] = positions * mask
        index[f"{name}_mask"] = mask.to(completion_mask.dtype)
    return index


def gather_tokens(per_token: torch.Tensor, index: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Per-token values of one sequence of each pair.

    Args:
        per_token (`torch.Tensor` of shape `(rows, T)`):
            Per-token outputs of the model.
        index (`torch.Tensor` of shape `(B, L)`):
            Positions in the flattened outputs.
        mask (`torch.Tensor` of shape `(B, L)`):
            1 on tokens, 0 on padding.

    Returns:
        `torch.Tensor` of shape `(B, L)`, 0 at padding.
    """
    return per_token.flatten()[index] * mask


def edited_tokens(response_ids: list[int], correction_ids: list[int]) -> tuple[list[int], list[int]]:
    """
    Which tokens of y and of y' the correction changed, by a minimal (Levenshtein) alignment.

    Args:
        response_ids (`list[int]`):
            Ids of y.
        correction_ids (`list[int]`):
            Ids of y'.

    Returns:
        `tuple[list[int], list[int]]`: For each sequence 1 at tokens that were replaced, deleted or inserted, 0 at
        those kept.
    """
    response_edited, correction_edited = [0] * len(response_ids), [0] * len(correction_ids)
    for edit in Levenshtein.opcodes(response_ids, correction_ids):
        if edit.tag != "equal":
            response_edited[edit.src_start : edit.src_end] = [1] * (edit.src_end - edit.src_start)
            correction_edited[edit.dest_start : edit.dest_end] = [1] * (edit.dest_end - edit.dest_start)
    return response_edited, correction_edited
