"""A pair is computed once: the log-probs of a response y and its correction y' from one packed row.

y and y' follow the same prompt and are equal up to the first edit. One row holds that common part once, then what is
left of y, then what is left of y':

    [ prompt | common prefix | tail of y | last prefix token | tail of y' ]
      0 ........... n-2   n-1   n ......       n-1              n ......      positions: those of two separate rows

* Positions restart, so every token has the position that it has in a row of its own.
* The attention mask is causal minus one rectangle: from the repeated token on, nothing sees the first copy of that
  token or the tail of y. Every token then sees exactly the tokens that it sees in a row of its own, so hidden states,
  log-probs and gradients are those of two rows, up to floating-point rounding.
* The repeated token predicts the first token of y' (its first copy predicts that of y): labels are next-token labels.
* The last token of either tail predicts nothing that is scored and is not computed.

Shorter pairs of a batch share a row (each sees only itself), so that padding does not eat the gain.

This holds for layers that mix tokens through masked attention only. `policy/attention.py` knows which models are made
of them and how their layers take a mask; everything that it does not know, it refuses.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel
from trl.data_utils import common_prefix_length
from trl.trainer.utils import FusedCausalLMOutput

from ..policy.attention import FULL_ATTENTION, MASK_PER_LAYER_TYPE, UNIFORM_WINDOW, unwrap_causal_lm


# A dense mask of this many elements at most (rows x length²: one row of 8,192 tokens, four of 4,096): 128 MiB in
# bfloat16. Beyond it, FlexAttention or two rows.
MAX_DENSE_MASK_ELEMENTS = 64 * 2**20

# Two rows are kept if packing is not expected to be at least this many times faster (see `expected_speedup`).
MIN_EXPECTED_SPEEDUP = 1.05


def pack_pairs(
    pairs: list[dict[str, list[int]]],
    pad_token_id: int,
    needs_common_prefix: bool = True,
    pad_to_multiple_of: int | None = None,
) -> dict[str, torch.Tensor]:
    """
    Lay out a batch of pairs with one segment per pair, and several short pairs in one row.

    Args:
        pairs (`list[dict[str, list[int]]]`):
            `"prompt_ids"`, `"response_ids"` and `"correction_ids"` of each pair, the latter two with their stop token,
            if any. Each may be empty.
        pad_token_id (`int`):
            Fills the rows on the right. It is in no loss and no real token sees it.
        needs_common_prefix (`bool`, *optional*, defaults to `True`):
            Whether the log-probs of the tokens that y and y' share are wanted. In log π(y|x) − log π(y'|x) they
            cancel, in value and gradient; `False` keeps them from the LM head and out of both masks, so that each
            sequence's sum is that of its tail only.
        pad_to_multiple_of (`int`, *optional*):
            Row length is rounded up to a multiple of this. 8 spares CUDA's attention kernels a copy of the mask; 128
            spares FlexAttention compilations.

    Returns:
        `dict[str, torch.Tensor]` with, for R rows of T tokens and B pairs whose longest y and y' have L and L' tokens:

        - `input_ids`, `position_ids` of shape `(R, T)`;
        - `shift_labels` of shape `(R, T)`: the token that each position predicts, -100 where no log-prob is wanted;
        - `segment_start`, `hidden_start`, `hidden_end` of shape `(R, T)`: a token sees the tokens of its row from
          `segment_start` up to itself, except those from `hidden_start` to before `hidden_end`;
        - `response_index`, `response_mask` of shape `(B, L)` and `correction_index`, `correction_mask` of shape
          `(B, L')`: for each token its place in the flattened `(R, T)` outputs of the model, and 1 for tokens, 0 for
          padding. A token with nothing before it (the first one after an empty prompt) has no predictor and is masked,
          as in TRL.
    """
    segments = [_segment(pair, needs_common_prefix) for pair in pairs]
    lengths = [len(segment["input_ids"]) for segment in segments]
    rows, n_columns = _assign_rows(lengths, pad_to_multiple_of)

    # A padding token sees only itself: a softmax over nothing would be NaN.
    columns = torch.arange(n_columns)
    batch = {
        "input_ids": torch.full((len(rows), n_columns), pad_token_id),
        "position_ids": torch.zeros(len(rows), n_columns, dtype=torch.long),
        "shift_labels": torch.full((len(rows), n_columns), -100),
        "segment_start": columns.repeat(len(rows), 1),
        "hidden_start": torch.zeros(len(rows), n_columns, dtype=torch.long),
        "hidden_end": torch.zeros(len(rows), n_columns, dtype=torch.long),
    }
    first_index = [0] * len(pairs)  # of each pair's segment, in the flattened rows
    for row, members in enumerate(rows):
        start = 0
        for pair in members:
            segment, end = segments[pair], start + lengths[pair]
            first_index[pair] = row * n_columns + start
            for name in ("input_ids", "position_ids", "shift_labels"):
                batch[name][row, start:end] = torch.tensor(segment[name], dtype=torch.long)
            batch["segment_start"][row, start:end] = start
            if segment["branch"] is not None:
                hidden_start, branch = segment["branch"]
                batch["hidden_start"][row, start + branch : end] = start + hidden_start
                batch["hidden_end"][row, start + branch : end] = start + branch
            start = end

    for name in ("response", "correction"):
        predictors = [segment[f"{name}_predictors"] for segment in segments]
        n_tokens = max(1, *(len(places) for places in predictors))
        index = torch.full((len(pairs), n_tokens), -1)
        for pair, places in enumerate(predictors):
            index[pair, : len(places)] = torch.tensor(places, dtype=torch.long)
        mask = index >= 0
        batch[f"{name}_index"] = (index + torch.tensor(first_index)[:, None]) * mask
        batch[f"{name}_mask"] = mask.long()
    return batch


def _segment(pair: dict[str, list[int]], needs_common_prefix: bool) -> dict:
    """One pair as a sequence; `*_predictors` has for each token of y and y' the place that predicts it, or -1."""
    prompt, response, correction = pair["prompt_ids"], pair["response_ids"], pair["correction_ids"]
    n_common = common_prefix_length(response, correction)
    trunk = prompt + response[:n_common]
    response_tail, correction_tail = response[n_common:], correction[n_common:]

    if response_tail and correction_tail:
        repeated = trunk[-1:]  # empty if there is neither a prompt nor a common prefix
        first_chain = trunk + response_tail[:-1]
        input_ids = first_chain + repeated + correction_tail[:-1]
        position_ids = [
            *range(len(first_chain)),
            *range(len(trunk) - len(repeated), len(trunk) + len(correction_tail) - 1),
        ]
        branch = (len(trunk) - len(repeated), len(first_chain))
        # From here on a place is that of the position plus this.
        correction_shift = len(first_chain) - (len(trunk) - len(repeated))
    else:  # one is the start of the other: a plain sequence holds both
        input_ids = (trunk + response_tail + correction_tail)[:-1]
        position_ids = [*range(len(input_ids))]
        branch = None
        correction_shift = 0

    n_prompt = len(prompt)
    response_predictors = [n_prompt + j - 1 for j in range(len(response))]
    correction_predictors = [
        n_prompt + j - 1 + (correction_shift if j >= n_common else 0) for j in range(len(correction))
    ]
    if not prompt:  # nothing predicts the first token
        response_predictors[:1] = [-1] * len(response[:1])
        correction_predictors[:1] = [-1] * len(correction[:1])
    if not needs_common_prefix:
        response_predictors[:n_common] = correction_predictors[:n_common] = [-1] * n_common

    shift_labels = [-100] * len(input_ids)
    for predictors, tokens in ((response_predictors, response), (correction_predictors, correction)):
        for place, token in zip(predictors, tokens, strict=True):
            if place >= 0:
                shift_labels[place] = token
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "shift_labels": shift_labels,
        "branch": branch,
        "response_predictors": response_predictors,
        "correction_predictors": correction_predictors,
    }


def _assign_rows(lengths: list[int], pad_to_multiple_of: int | None) -> tuple[list[list[int]], int]:
    """Rows as long as the longest segment; each segment, longest first, goes into the first row that has room."""
    n_columns = _round_up(max(1, *lengths), pad_to_multiple_of)
    rows, free = [], []
    for segment in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((i for i, room in enumerate(free) if room >= lengths[segment]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            free.append(n_columns)
        rows[row].append(segment)
        free[row] -= lengths[segment]
    return rows, n_columns


def _round_up(length: int, multiple: int | None) -> int:
    return length if multiple is None else -(-length // multiple) * multiple


def token_ratio(pairs: list[dict[str, list[int]]], pad_to_multiple_of: int | None = None) -> float:
    """
    How many times more tokens, padding included, a batch of pairs has in two rows per pair than packed.

    Args:
        pairs (`list[dict[str, list[int]]]`):
            As for [`pack_pairs`].
        pad_to_multiple_of (`int`, *optional*):
            As for [`pack_pairs`], for both layouts.

    Returns:
        `float`: About 1 if nothing is shared; 2 if the pairs have equal lengths and differ in their last token only.
    """
    two_rows, n_two_row_columns = _two_row_shape(pairs, pad_to_multiple_of)
    rows, n_columns = _packed_shape(pairs, pad_to_multiple_of)
    return two_rows * n_two_row_columns / (rows * n_columns)


def expected_speedup(
    pairs: list[dict[str, list[int]]], hidden_size: int, pad_to_multiple_of: int | None = None
) -> float:
    """
    How many times faster a batch is expected to be packed than in two rows per pair.

    A token costs about 24 h² operations per layer in the matrix products of a model of width h, and 4 h for each place
    of its row in attention: a cost of 1 + T / (6 h) per token of a row of T. The packed row has fewer tokens but is
    longer, so where little is shared and rows are long it loses.

    Args:
        pairs (`list[dict[str, list[int]]]`):
            As for [`pack_pairs`].
        hidden_size (`int`):
            h, the width of the model.
        pad_to_multiple_of (`int`, *optional*):
            As for [`pack_pairs`], for both layouts.

    Returns:
        `float`
    """
    two_rows, n_two_row_columns = _two_row_shape(pairs, pad_to_multiple_of)
    rows, n_columns = _packed_shape(pairs, pad_to_multiple_of)
    two_row_cost = two_rows * n_two_row_columns * (1 + n_two_row_columns / (6 * hidden_size))
    return two_row_cost / (rows * n_columns * (1 + n_columns / (6 * hidden_size)))


def dense_mask_fits(
    pairs: list[dict[str, list[int]]], attn_implementation: str = "sdpa", pad_to_multiple_of: int | None = None
) -> bool:
    """
    Whether the mask of a packed batch stays within `MAX_DENSE_MASK_ELEMENTS`.

    Args:
        pairs (`list[dict[str, list[int]]]`):
            As for [`pack_pairs`].
        attn_implementation (`str`, *optional*, defaults to `"sdpa"`):
            The model's attention; `"flex_attention"` needs no dense mask, so everything fits.
        pad_to_multiple_of (`int`, *optional*):
            As for [`pack_pairs`].

    Returns:
        `bool`
    """
    if attn_implementation == "flex_attention":
        return True
    rows, n_columns = _packed_shape(pairs, pad_to_multiple_of)
    return rows * n_columns**2 <= MAX_DENSE_MASK_ELEMENTS


def sharing_pays(
    pairs: list[dict[str, list[int]]],
    attn_implementation: str = "sdpa",
    pad_to_multiple_of: int | None = None,
    hidden_size: int = 512,
) -> bool:
    """
    The gate of `shared_prefix="auto"`: whether a batch of pairs should be packed rather than laid out in two rows.

    Args:
        pairs (`list[dict[str, list[int]]]`):
            As for [`pack_pairs`].
        attn_implementation (`str`, *optional*, defaults to `"sdpa"`):
            As for [`dense_mask_fits`].
        pad_to_multiple_of (`int`, *optional*):
            As for [`pack_pairs`].
        hidden_size (`int`, *optional*, defaults to `512`):
            As for [`expected_speedup`]. Wider models gain more; the default is that of a small one.

    Returns:
        `bool`: Whether the expected speed-up is at least `MIN_EXPECTED_SPEEDUP` and the mask fits.
    """
    return expected_speedup(pairs, hidden_size, pad_to_multiple_of) >= MIN_EXPECTED_SPEEDUP and dense_mask_fits(
        pairs, attn_implementation, pad_to_multiple_of
    )


def _two_row_shape(pairs, pad_to_multiple_of):
    longest = max(len(p["prompt_ids"]) + max(len(p["response_ids"]), len(p["correction_ids"])) for p in pairs)
    return 2 * len(pairs), _round_up(longest, pad_to_multiple_of)


def packed_length(pair: dict[str, list[int]]) -> int:
    """Tokens of a pair as [`pack_pairs`] lays it out."""
    response, correction = pair["response_ids"], pair["correction_ids"]
    n_common = common_prefix_length(response, correction)
    return max(len(pair["prompt_ids"]) + len(response) + len(correction) - n_common - 1, 0)


def _packed_shape(pairs, pad_to_multiple_of):
    rows, n_columns = _assign_rows([packed_length(pair) for pair in pairs], pad_to_multiple_of)
    return len(rows), n_columns


def attention_mask(
    model: PreTrainedModel | PeftModel, batch: dict[str, torch.Tensor]
) -> torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]:
    """
    The mask of packed rows in the form that a model takes.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A model for which `unsupported_reason` has no objection.
        batch (`dict[str, torch.Tensor]`):
            From [`pack_pairs`], on the model's device.

    Returns:
        `torch.Tensor` of shape `(R, 1, T, T)`, added to the attention scores, or a
        [`~torch.nn.attention.flex_attention.BlockMask`] for `flex_attention`; for models whose layers differ, a `dict`
        with one of them for each of the config's `layer_types`. A sliding window counts positions, not places in the
        row.

    Raises:
        ValueError: If the dense mask would have more than `MAX_DENSE_MASK_ELEMENTS` elements, or the model is not
            listed.
    """
    causal_lm = unwrap_causal_lm(model)
    config = causal_lm.config
    family = type(causal_lm).__name__
    if family in FULL_ATTENTION:
        windows = {"all": None}
    elif family in UNIFORM_WINDOW:
        windows = {"all": config.sliding_window}
    elif family in MASK_PER_LAYER_TYPE:
        window = {"full_attention": None, "sliding_attention": config.sliding_window}
        windows = {layer_type: window[layer_type] for layer_type in dict.fromkeys(config.layer_types)}
    else:
        raise ValueError(f"{family} has no known mask for shared prefixes; see `unsupported_reason`.")

    if config._attn_implementation == "flex_attention":
        masks = {name: _block_mask(batch, window) for name, window in windows.items()}
    else:
        n_rows, n_columns = batch["input_ids"].shape
        if n_rows * n_columns**2 > MAX_DENSE_MASK_ELEMENTS:
            raise ValueError(
                f"{n_rows} packed rows of {n_columns} tokens need a dense attention mask of {n_rows * n_columns**2:,} "
                f"elements, more than {MAX_DENSE_MASK_ELEMENTS:,}. Use `attn_implementation='flex_attention'`, a "
                "smaller batch, or `shared_prefix='auto'`."
            )
        dtype = _score_dtype(causal_lm)
        masks = {name: _dense_mask(batch, window, dtype) for name, window in windows.items()}
    return masks["all"] if "all" in masks else masks


def _visible(batch: dict[str, torch.Tensor], window: int | None) -> Callable:
    """Whether the query sees the key, as a FlexAttention `mask_mod`; `_dense_mask` says the same for all at once."""
    position, start = batch["position_ids"], batch["segment_start"]
    hidden_start, hidden_end = batch["hidden_start"], batch["hidden_end"]

    def visible(row, head, query, key):
        seen = (key <= query) & (key >= start[row, query])
        seen = seen & ((key < hidden_start[row, query]) | (key >= hidden_end[row, query]))
        if window is not None:
            seen = seen & (position[row, query] - position[row, key] < window)
        return seen

    return visible


def _block_mask(batch: dict[str, torch.Tensor], window: int | None) -> BlockMask:
    n_rows, n_columns = batch["input_ids"].shape
    device = batch["input_ids"].device
    # Without compilation the block mask is derived from a dense one; compiling takes long on a CPU.
    return create_block_mask(
        _visible(batch, window), n_rows, None, n_columns, n_columns, device=device, _compile=device.type != "cpu"
    )


def _dense_mask(batch: dict[str, torch.Tensor], window: int | None, dtype: torch.dtype | None) -> torch.Tensor:
    key = torch.arange(batch["input_ids"].size(1), device=batch["input_ids"].device)
    seen = (key <= key[:, None]) & (key >= batch["segment_start"][:, :, None])
    seen &= (key < batch["hidden_start"][:, :, None]) | (key >= batch["hidden_end"][:, :, None])
    if window is not None:
        position = batch["position_ids"]
        seen &= position[:, :, None] - position[:, None, :] < window
    seen = seen[:, None]
    if dtype is None:
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def _score_dtype(causal_lm: PreTrainedModel) -> torch.dtype | None:
    """
    The dtype in which attention scores are computed, or `None` (a boolean mask) where it cannot be told from outside.

    SDPA takes a boolean mask in any case, but turns it into an additive one in every layer, and keeps that for the
    backward pass.
    """
    device_type = causal_lm.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    dtypes = {parameter.dtype for parameter in causal_lm.parameters() if parameter.is_floating_point()}
    if len(dtypes) == 1:
        return dtypes.pop()
    return None if causal_lm.config._attn_implementation == "sdpa" else causal_lm.get_input_embeddings().weight.dtype


def packed_forward(model: nn.Module, batch: dict[str, torch.Tensor]) -> FusedCausalLMOutput:
    """
    One forward pass over packed rows.

    Args:
        model ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`], or either wrapped for distributed training):
            A model that was given TRL's `add_fused_lm_head` and for which `unsupported_reason` has no objection.
        batch (`dict[str, torch.Tensor]`):
            From [`pack_pairs`], on the model's device. Further keys are ignored.

    Returns:
        [`~trl.trainer.utils.FusedCausalLMOutput`] with per-token fields of shape `(R, T)`, 0 where `shift_labels` is
        -100. Those of y are `outputs.log_probs.flatten()[batch["response_index"]] * batch["response_mask"]`.
    """
    return labelled_forward(
        model,
        batch["shift_labels"],
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=attention_mask(model, batch),
    )


def labelled_forward(model: nn.Module, shift_labels: torch.Tensor, **inputs) -> FusedCausalLMOutput:
    """
    One forward pass with TRL's fused LM head in which only positions with a label reach the head, on every device.

    With Triton TRL's head skips the others by itself; elsewhere it projects prompts and padding as well. Any layout of
    rows will do.

    Args:
        model ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`], or either wrapped for distributed training):
            A model that was given TRL's `add_fused_lm_head`.
        shift_labels (`torch.Tensor` of shape `(R, T)`):
            The token that each position predicts, or -100.
        inputs:
            The model's other inputs.

    Returns:
        [`~trl.trainer.utils.FusedCausalLMOutput`] with per-token fields of shape `(R, T)`, 0 where `shift_labels` is
        -100.
    """
    if shift_labels.device.type != "cpu":
        return model(**inputs, shift_labels=shift_labels, fused_lm_head=True)
    labelled = shift_labels != -100
    with _hidden_states_at(unwrap_causal_lm(model).base_model, labelled):
        outputs = model(**inputs, shift_labels=shift_labels[labelled][None], fused_lm_head=True)
    for name in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"):
        if name in outputs:  # only what the head was asked for
            outputs[name] = outputs[name].new_zeros(labelled.shape).masked_scatter(labelled, outputs[name])
    outputs["label_mask"] = labelled
    return outputs


@contextmanager
def _hidden_states_at(backbone: nn.Module, selected: torch.Tensor) -> Iterator[None]:
    """Let a backbone return only the selected positions, as one row: the LM head then projects nothing else."""

    def select(module, args, outputs):
        outputs.last_hidden_state = outputs.last_hidden_state[selected][None]
        return outputs

    handle = backbone.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def two_row_difference(model: nn.Module, pairs: list[dict[str, list[int]]], pad_token_id: int) -> tuple[float, float]:
    """
    Compare the log-probs of packed rows with those of two rows per pair.

    Args:
        model ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`], or either wrapped for distributed training):
            As for [`packed_forward`]. It is run in evaluation mode, so that dropout does not differ.
        pairs (`list[dict[str, list[int]]]`):
            As for [`pack_pairs`].
        pad_token_id (`int`):
            As for [`pack_pairs`].

    Returns:
        `tuple[float, float]`: Largest and mean absolute difference over all tokens of all y and y', in nats; NaN if
        either is.
    """
    device = unwrap_causal_lm(model).device
    batch = {name: value.to(device) for name, value in pack_pairs(pairs, pad_token_id).items()}
    sides = [(name, i) for name in ("response", "correction") for i in range(len(pairs))]
    rows = [pairs[i]["prompt_ids"] + pairs[i][f"{name}_ids"] for name, i in sides]
    # At least two columns, since the first token of a row is not predicted.
    input_ids = torch.full((len(rows), max(2, *map(len, rows))), pad_token_id, device=device)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, ((_, i), ids) in enumerate(zip(sides, rows, strict=True)):
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, : len(ids)] = 1
        labels[row, len(pairs[i]["prompt_ids"]) : len(ids)] = input_ids[row, len(pairs[i]["prompt_ids"]) : len(ids)]

    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        packed = packed_forward(model, batch).log_probs.flatten()
        two_rows = model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True
        ).log_probs
    finally:
        for module in training:
            module.training = True

    differences = [torch.zeros(1, device=device)]
    for row, (name, i) in enumerate(sides):
        places = batch[f"{name}_index"][i][batch[f"{name}_mask"][i].bool()]
        differences.append((packed[places] - two_rows[row][labels[row, 1:] != -100]).abs().float())
    differences = torch.cat(differences)
    return differences.max().item(), differences.sum().item() / max(differences.numel() - 1, 1)


def self_check(model: nn.Module, pairs: list[dict[str, list[int]]], pad_token_id: int) -> str | None:
    """
    The check with which `shared_prefix="auto"` starts a run: do packed rows and two rows agree on this very model?

    Args:
        model ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`], or either wrapped for distributed training):
            As for [`packed_forward`].
        pairs (`list[dict[str, list[int]]]`):
            As for [`pack_pairs`]; those of the first batch.
        pad_token_id (`int`):
            As for [`pack_pairs`].

    Returns:
        `str` or `None`: What went wrong, as a clause that can follow "because ", or `None`.
    """
    causal_lm = unwrap_causal_lm(model)
    while pairs and not dense_mask_fits(pairs, causal_lm.config._attn_implementation):
        pairs = pairs[:-1]  # what would not be packed is not compared
    if not pairs:
        return None
    largest, mean = two_row_difference(model, pairs, pad_token_id)
    low_precision = (
        torch.is_autocast_enabled(causal_lm.device.type)
        or torch.backends.cuda.matmul.allow_tf32
        or any(p.dtype != torch.float32 for p in causal_lm.parameters())
    )
    max_tolerance, mean_tolerance = (1.0, 0.05) if low_precision else (1e-3, 1e-4)
    if largest <= max_tolerance and mean <= mean_tolerance:  # NaN is not
        return None
    return (
        f"the log-probs of its packed rows differ from those of two rows by {mean:.2g} nats per token on average and "
        f"{largest:.2g} at most"
    )
