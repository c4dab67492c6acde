"""A batch of pairs as the losses read it: per-token log-probs of y and y', aligned at their first token.

However a batch lays its pairs out in rows (two rows per pair as in TRL's `DPOTrainer`, or one packed row, see
`shared_prefix.py`), it carries for each sequence an index into the flattened per-token outputs of the model, of shape
`(B, L)`, and a mask of the same shape. The losses then never see rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein
from transformers import PretrainedConfig
from trl.trainer.utils import pad

from ..data_utils import message_text
from ..evaluation.metrics import edit_ratio
from .correction_optimization_config import CorrectionOptimizationConfig
from .shared_prefix import MAX_DENSE_MASK_ELEMENTS, dense_mask_fits, pack_pairs, packed_length, sharing_pays


# Per-pair numbers that travel with a batch, beside what the model needs: float tensors of shape (B,).
PAIR_COLUMNS = ("pair_weight", "unchanged", "missing", "edit_ratio", "response_truncated", "correction_truncated")
# What else a batch holds that is not for the model.
NOT_FOR_THE_MODEL = {
    *PAIR_COLUMNS,
    "replayed",
    "values",
    "sampled_at",
    "n_tokens",
    "completion_mask",
    "response_mask",
    "response_marked",
    "correction_marked",
    "ref_chosen_logps",
    "ref_rejected_logps",
}


@dataclass
class PairLogProbs:
    """
    Per-token log-probs of a batch of pairs, token j of a sequence in column j.

    Attributes:
        response (`torch.Tensor` of shape `(B, L)`, *optional*):
            log π of each token of y, in nats; 0 at padding. `None` where only y' was computed.
        response_mask (`torch.Tensor` of shape `(B, L)`):
            1 on the tokens of y.
        correction (`torch.Tensor` of shape `(B, L')`):
            log π of each token of y', in nats; 0 at padding.
        correction_mask (`torch.Tensor` of shape `(B, L')`):
            1 on the tokens of y'.
        response_entropy (`torch.Tensor` of shape `(B, L)`, *optional*):
            Entropy of the policy at each token of y, in nats, without gradient.
    """

    response: torch.Tensor | None
    response_mask: torch.Tensor
    correction: torch.Tensor
    correction_mask: torch.Tensor
    response_entropy: torch.Tensor | None = None


def row_index(completion_mask: torch.Tensor, names: tuple[str, ...] = ("correction", "response")) -> dict:
    """
    Where the tokens of each pair stand in the per-token outputs of TRL's layout: the B corrections first, then the B
    responses, each row `[prompt | completion | padding]`.

    Args:
        completion_mask (`torch.Tensor` of shape `(2 * B, T)`):
            1 on the completion's tokens, which are contiguous. `(B, T)` with one name.
        names (`tuple[str, ...]`, *optional*, defaults to `("correction", "response")`):
            Of the sequences, in the order of their rows.

    Returns:
        `dict[str, torch.Tensor]` with `response_index`, `response_mask`, `correction_index` and `correction_mask`, of
        shape `(B, L)`, into outputs of shape `(2 * B, T - 1)`, flattened. A completion token at position 0 has no
        predictor and is left out, as in TRL.
    """
    predicted = completion_mask[:, 1:]
    n_tokens = predicted.sum(1)
    starts = predicted.argmax(1)
    index = {}
    size = completion_mask.size(0) // len(names)
    for number, name in enumerate(names):
        rows = slice(number * size, (number + 1) * size)
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


def credited_tokens(response_ids: list[int], correction_ids: list[int], credit: str) -> tuple[list[int], list[int]]:
    """
    Which tokens of y and of y' are in the loss.

    Args:
        response_ids (`list[int]`):
            Ids of y.
        correction_ids (`list[int]`):
            Ids of y'.
        credit (`str`):
            `"from_edit"`: those from the first that differs on. `"edits"`: the edited ones; where something was only
            deleted or only inserted, the other sequence's token that stands in its place is one of them. Either way
            the first token that differs is, in both sequences, unless one of them has ended.

    Returns:
        `tuple[list[int], list[int]]`: For each sequence 1 at tokens that count, 0 at others; nothing counts where
        y' = y.
    """
    edits = [edit for edit in Levenshtein.opcodes(response_ids, correction_ids) if edit.tag != "equal"]
    response, correction = [0] * len(response_ids), [0] * len(correction_ids)
    if credit == "from_edit" and edits:
        first = next(
            (i for i, (a, b) in enumerate(zip(response_ids, correction_ids, strict=False)) if a != b),
            min(len(response_ids), len(correction_ids)),
        )
        response[first:], correction[first:] = [1] * (len(response) - first), [1] * (len(correction) - first)
    elif edits:
        for edit in edits:
            for marked, start, end in (
                (response, edit.src_start, edit.src_end),
                (correction, edit.dest_start, edit.dest_end),
            ):
                end = min(max(end, start + 1), len(marked))
                marked[start:end] = [1] * (end - start)
    return response, correction


class PairCollator:
    """
    Makes batches of pairs: packed rows where the prefix is shared, else TRL's preference collator (two rows per pair),
    and in both cases the per-pair numbers. Prompts pass through untouched, and so do tokenised pairs that are cut into
    micro-batches only when their update is complete (`waits`); `collate` then makes them.
    """

    def __init__(self, collator: Callable, args: CorrectionOptimizationConfig, model_config: PretrainedConfig):
        self.collator = collator
        self.args = args
        self.attn_implementation = model_config._attn_implementation
        self.hidden_size = model_config.hidden_size
        self.shared_prefix = False  # until the trainer knows that the model allows it
        self.waits = False

    def pairs(self, examples: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
        """The token ids of each pair, cut at `max_length` as TRL's collator does."""
        pairs = []
        for example in examples:
            room = None if self.args.max_length is None else max(self.args.max_length - len(example["prompt_ids"]), 0)
            pairs.append(
                {
                    "prompt_ids": list(example["prompt_ids"]),
                    "response_ids": list(example["rejected_ids"])[:room],
                    "correction_ids": list(example["chosen_ids"])[:room],
                }
            )
        return pairs

    def _pack(self, pairs: list[dict[str, list[int]]]) -> bool:
        if self.shared_prefix == "auto":
            return sharing_pays(pairs, self.attn_implementation, self.args.pad_to_multiple_of, self.hidden_size)
        return self.shared_prefix and dense_mask_fits(pairs, self.attn_implementation, self.args.pad_to_multiple_of)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor] | list[dict[str, Any]]:
        is_tokenised = "chosen_ids" in examples[0]
        if (is_tokenised and self.waits) or (not is_tokenised and not {"chosen", "rejected"} <= set(examples[0])):
            return examples
        return self.collate(examples)

    def lengths(self, examples: list[dict[str, Any]]) -> list[int]:
        """Tokens that each pair takes of a forward."""
        pairs = self.pairs(examples)
        if self.args.loss_type == "sft":
            return [len(pair["prompt_ids"]) + len(pair["correction_ids"]) for pair in pairs]
        if self._pack(pairs):
            return [packed_length(pair) for pair in pairs]
        return [2 * (len(p["prompt_ids"]) + max(len(p["response_ids"]), len(p["correction_ids"]))) for p in pairs]

    def max_tokens(self, lengths: list[int]) -> int | float:
        """Most tokens of a forward whose dense mask still fits."""
        if not self.shared_prefix or self.attn_implementation == "flex_attention":
            return math.inf
        return MAX_DENSE_MASK_ELEMENTS // max(lengths)

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "edit_ratio" not in examples[0]:  # pairs with images are tokenised only now
            for example in examples:
                response, correction = message_text(example["rejected"]), message_text(example["chosen"])
                example["unchanged"] = float(response == correction)
                example["edit_ratio"] = edit_ratio(response, correction)
        numbers = {key: [example.get(key, 0.0) for example in examples] for key in PAIR_COLUMNS}
        drop_unchanged = self.args.unchanged_pairs == "drop"
        numbers["pair_weight"] = [
            0.0 if drop_unchanged and example.get("unchanged") else example.get("pair_weight", 1.0)
            for example in examples
        ]
        if examples[0].get("values"):
            numbers["values"] = [example["values"] for example in examples]
        if "sampled_at" in examples[0]:
            numbers["sampled_at"] = [example["sampled_at"] for example in examples]

        pairs = self.pairs(examples) if "chosen_ids" in examples[0] else None
        batch = self._rows(examples, pairs)
        # What has one row per pair, (B,) and for "values" (B, F, 2), comes first: accelerate takes the size of a batch
        # from its first tensor, and packed rows can be fewer than pairs
        numbers = {key: torch.tensor(values, dtype=torch.float32) for key, values in numbers.items()}
        batch = {**numbers, **batch}
        if self.args.loss_type == "ddpo" or self.args.credit != "all":
            marked = [self._marked_tokens(pair["response_ids"], pair["correction_ids"]) for pair in pairs]
            for name, side in (("response", 0), ("correction", 1)):
                batch[f"{name}_marked"] = pad([torch.tensor(of_pair[side]) for of_pair in marked], padding_value=0)
        return batch

    def _rows(self, examples: list[dict[str, Any]], pairs: list[dict[str, list[int]]] | None) -> dict[str, Any]:
        """What the model gets: y' alone (B, T), R packed rows (R, T), or two rows per pair (2 B, T), all chosen ones
        first; and `n_tokens`, (B,)."""
        if pairs is not None and self.args.loss_type == "sft":
            rows = self.collator([{**example, "rejected_ids": example["chosen_ids"]} for example in examples])
            rows = {name: values[: len(pairs)] for name, values in rows.items()}
            rows["n_tokens"] = rows["attention_mask"].sum(1).float()
            rows["response_mask"] = pad([torch.ones(len(pair["response_ids"])) for pair in pairs], padding_value=0)
        elif pairs is not None and self._pack(pairs):
            rows = pack_pairs(pairs, self.collator.pad_token_id, pad_to_multiple_of=self.args.pad_to_multiple_of)
            for name in ("ref_chosen_logps", "ref_rejected_logps"):
                if name in examples[0]:
                    rows[name] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
            rows["n_tokens"] = torch.tensor(
                [2.0 * len(pair["prompt_ids"]) + len(pair["response_ids"]) + len(pair["correction_ids"])
                 for pair in pairs]
            )  # fmt: skip
        else:
            rows = dict(self.collator(examples))
            chosen, rejected = rows["attention_mask"].sum(1).chunk(2)
            rows["n_tokens"] = (chosen + rejected).float()
        return rows

    def _marked_tokens(self, response_ids: list[int], correction_ids: list[int]) -> tuple[list[int], list[int]]:
        """The tokens that `ddpo` weighs more, or those that get credit."""
        if self.args.loss_type == "ddpo":
            return edited_tokens(response_ids, correction_ids)
        return credited_tokens(response_ids, correction_ids, self.args.credit)
