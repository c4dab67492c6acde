"""Sampling responses: token ids in, token ids out.

[`generate`] is the only place that calls transformers' `generate`; a faster engine is a function with its signature.
[`Sampler`] is what everything else samples with.

The rule of seeds: a response's random numbers depend on the run's seed, on what it is a response to (the caller's name
for the row, the sample and the step) and on its turn, and on nothing else: not on the batch, its order or the number
of processes. (vLLM draws its own.)
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module
from trl.distributed import DistributedBackend
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import pad

from ..errors import BadInput
from .attempts import sample_attempts
from .attention import unsupported_reason
from .tokenization import check_vocabulary, decode, stop_token_ids


# --------------------------------------------------------------------------------------------------------------------
# One batch
# --------------------------------------------------------------------------------------------------------------------


@dataclass
class KeptRows:
    """A batch's conversations so far, for their next turn to go on from."""

    input_ids: torch.Tensor  # (B, T); padding lies on the left and, after an earlier turn, inside the rows
    attention_mask: torch.Tensor  # (B, T), 0 on padding
    cache: Cache  # of the T tokens, or of all but the last one


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    generation_config: GenerationConfig,
    seeds: Sequence[int] | None = None,
    continue_from: KeptRows | None = None,
    keep: bool = False,
    model_inputs: Callable[[torch.Tensor, torch.Tensor], dict[str, Any]] | None = None,
) -> tuple[list[list[int]], KeptRows | None]:
    """
    One batch of completions, one per row. A prompt that is sampled several times stands in as many rows.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, unwrapped, in evaluation mode.
        prompt_ids (`Sequence[Sequence[int]]`):
            Token ids of B prompts, none empty; with `continue_from`, what follows the kept rows.
        generation_config ([`~transformers.GenerationConfig`]):
            From [`sampling_config`].
        seeds (`Sequence[int]`, *optional*):
            One per row: where tokens are sampled, what a row draws depends on its seed alone. By default they are
            drawn with torch's global random state.
        continue_from ([`KeptRows`], *optional*):
            What an earlier call kept, of the same rows.
        keep (`bool`, *optional*, defaults to `False`):
            Whether to keep the rows for a later turn. Where the model does not allow it (layers that see a window, or
            have a state) nothing is kept, and the next turn has to start again from the ids.
        model_inputs (`Callable`, *optional*):
            For prompts with images: called with the ids and their attention mask, both `(B, T)` and padded on the
            left; returns the model's further inputs, such as `pixel_values`. Nothing is kept then.

    Returns:
        `tuple`: Ids of each completion, up to and including its first stop token (one that was cut off by the length
        limit has none); and what was kept, if anything.
    """
    device = model.device
    tensors = [torch.tensor(ids, dtype=torch.long) for ids in prompt_ids]
    input_ids = pad(tensors, padding_value=generation_config.pad_token_id, padding_side="left").to(device)
    attention_mask = pad([torch.ones_like(t) for t in tensors], padding_value=0, padding_side="left").to(device)
    cache = None
    if continue_from is not None:
        # Padding now also lies inside the rows; the mask hides it, and `generate` counts positions by the mask
        input_ids = torch.cat([continue_from.input_ids, input_ids], dim=1)
        attention_mask = torch.cat([continue_from.attention_mask, attention_mask], dim=1)
        cache = continue_from.cache
    elif keep and model_inputs is None:
        cache = _cache_to_keep(model, generation_config)
    options: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
    if model_inputs is not None:
        options |= model_inputs(input_ids, attention_mask)
    if seeds is not None and generation_config.do_sample:
        row_wise = _RowWiseSampling(seeds, input_ids.size(1), generation_config.max_new_tokens, device)
        options["custom_generate"] = row_wise.decode
    output = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=generation_config, **options
    )  # (B, T + N)
    new = output[:, input_ids.size(1) :]  # (B, N)
    stop_ids = generation_config.eos_token_id
    stop_ids = torch.tensor([stop_ids] if isinstance(stop_ids, int) else list(stop_ids), device=new.device)
    stops = torch.isin(new, stop_ids).long()
    written = (stops.cumsum(1) - stops) == 0  # (B, N): up to and including the first stop token
    completions = [ids[mask].tolist() for ids, mask in zip(new.cpu(), written.cpu(), strict=True)]
    if cache is None:
        return completions, None
    return completions, KeptRows(output, torch.cat([attention_mask, written.long()], dim=1), cache)


def _cache_to_keep(model: PreTrainedModel, generation_config: GenerationConfig) -> Cache | None:
    if generation_config.cache_implementation is not None or unsupported_reason(model) is not None:
        return None
    cache = DynamicCache(config=model.config)
    # A sliding window would count the padding inside the rows
    return None if any(layer.is_sliding for layer in cache.layers) else cache


def uniform_numbers(seeds: Sequence[int], n_new: int) -> torch.Tensor:
    """For each row `(B, N)` as many numbers u ∼ U(0, 1) of its own as it may get tokens."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(n_new, generator=generator) for generator in generators])


def choose_tokens(scores: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """
    The first token at which the cumulated probability exceeds u, for logits `(B, V)` and numbers `(B, 1)`: `(B, 1)`.

    A row needs one number per token, drawn before the first one, whatever the vocabulary, the device and the other
    rows are.
    """
    # In float32 the sum over a large vocabulary would be as coarse as a rare token's probability
    dtype = torch.float32 if scores.device.type == "mps" else torch.float64
    cumulated = scores.softmax(-1, dtype=dtype).cumsum(-1)  # (B, V)
    chosen = torch.searchsorted(cumulated, u.to(dtype) * cumulated[:, -1:], right=True)
    return chosen.clamp(max=scores.size(1) - 1)  # where rounding makes u the whole sum


class _RowWiseSampling(LogitsProcessor):
    """Transformers' sampling loop, with a random number of the row's own for each of its tokens."""

    def __init__(self, seeds: Sequence[int], n_before: int, n_new: int, device: torch.device):
        self.uniform = uniform_numbers(seeds, n_new).to(device)  # (B, N)
        self.n_before = n_before

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits `(B, V)`, after temperature, top-p and the like, in which the chosen token alone is left."""
        chosen = choose_tokens(scores, self.uniform[:, input_ids.size(1) - self.n_before, None])  # (B, 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    def decode(self, model, input_ids, logits_processor, stopping_criteria, generation_config, **model_inputs):
        """What `generate` calls for its loop: here its own, whose argmax then is the chosen token."""
        generation_config.do_sample = False  # a copy, made for this call
        is_sharded = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)
        return model._sample(
            input_ids,
            logits_processor=LogitsProcessorList([*logits_processor, self]),
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            # `generate` does not hand this on: processes that share a model's weights have to end together
            synced_gpus=is_sharded and torch.distributed.get_world_size() > 1,
            **model_inputs,
        )


# --------------------------------------------------------------------------------------------------------------------
# Many responses
# --------------------------------------------------------------------------------------------------------------------


def sampling_config(
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    generation_kwargs: dict[str, Any] | None = None,
) -> GenerationConfig:
    """
    How to sample from a policy. By default nothing is cut off its distribution, and no setting of the model's own
    `generation_config.json` is taken over silently.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer, with a padding token.
        stop_ids (`Sequence[int]`):
            From [`~tokenization.stop_token_ids`].
        max_new_tokens (`int`):
            Most tokens of a completion.
        temperature (`float`):
            0 is greedy decoding, where `top_p` and `top_k` mean nothing.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus sampling.
        top_k (`int`, *optional*, defaults to `0`):
            Sample from so many most likely tokens; 0: all.
        generation_kwargs (`dict`, *optional*):
            Further arguments of [`~transformers.GenerationConfig`], such as `min_p` or `repetition_penalty`.

    Raises:
        BadInput: If `generation_kwargs` holds what transformers does not know, or a search instead of sampling.
    """
    sampling = {"do_sample": False}
    if temperature != 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=list(stop_ids),
        disable_compile=True,
        use_cache=True,  # a model that was saved after training with gradient checkpointing says no
        repetition_penalty=1.0,  # what is left out is taken from the model's generation_config.json
        **sampling,
    )
    if unknown := config.update(**(generation_kwargs or {})):
        raise BadInput(f"`generation_kwargs` holds {sorted(unknown)}, which transformers' GenerationConfig lacks.")
    for name in ("num_beams", "num_return_sequences"):
        if getattr(config, name) not in (None, 1):
            raise BadInput(f"`generation_kwargs`: {name!r} must be 1; each prompt is sampled once, token by token.")
    if isinstance(config.eos_token_id, int):
        config.eos_token_id = [config.eos_token_id]
    return config


def generate_completions(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    generation_config: GenerationConfig,
    batch_size: int | None = None,
    seeds: Sequence[int] | None = None,
    engine: Callable = generate,
) -> list[list[int]]:
    """
    Complete each prompt once. Prompts are batched by length, so that little is padded; results come back in the order
    of the prompts.

    Args:
        model, prompt_ids, generation_config, seeds:
            See [`generate`].
        batch_size (`int`, *optional*):
            Most prompts in one batch; by default all of them.
        engine (`Callable`, *optional*, defaults to [`generate`]):
            What completes a batch.

    Returns:
        `list[list[int]]`: Ids of each completion.
    """
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    batch_size = batch_size or max(len(order), 1)
    completions: list[list[int]] = [[] for _ in prompt_ids]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        of_rows = None if seeds is None else [seeds[i] for i in rows]
        found, _ = engine(model, [prompt_ids[i] for i in rows], generation_config, of_rows)
        for i, ids in zip(rows, found, strict=True):
            completions[i] = ids
    return completions


def numbered(names: Sequence[Hashable]) -> list[tuple[Hashable, int]]:
    """Each with its number among its equals: names for several samples of one prompt."""
    counts = Counter()
    found = []
    for name in names:
        found.append((name, counts[name]))
        counts[name] += 1
    return found


def seed_of(*names: Hashable) -> int:
    """A seed that depends on all of these and nothing else."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, names)).encode()).digest()[:7], "big")


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers start from this seed; afterwards they go on where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def policy_for_generation(model: nn.Module, trainer: Trainer | None = None) -> Iterator[PreTrainedModel]:
    """
    A model as it is sampled from: in evaluation mode and, of a trainer, unwrapped, without gradient checkpointing (it
    would switch the cache off) and with sharded weights gathered.

    Args:
        model (`nn.Module`):
            The model.
        trainer ([`~transformers.Trainer`], *optional*):
            The trainer whose policy it is.
    """
    with contextlib.ExitStack() as stack:
        was_training = model.training
        if trainer is not None:
            wrapped, args = trainer.model_wrapped, trainer.args
            model = stack.enter_context(
                unwrap_model_for_generation(
                    wrapped,
                    trainer.accelerator,
                    gather_deepspeed3_params=args.ds3_gather_for_generation,
                    gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
                )
            )
            stack.enter_context(DistributedBackend(trainer.accelerator).summon_full_params(wrapped, recurse=False))
        model.eval()
        try:
            yield model
        finally:
            model.train(was_training)


@dataclass
class Responses:
    """
    What a model answered to several prompts.

    Attributes:
        ids (`list[list[int]]`):
            As they were sampled, stop token included.
        texts (`list[str]`):
            The same as text, without special tokens.
        cut_off (`list[bool]`):
            Whether the limit of tokens ended it.
    """

    ids: list[list[int]]
    texts: list[str]
    cut_off: list[bool]


class Sampler:
    """
    Samples responses of a model.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model; without a `trainer`, unwrapped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. Without a padding token, it gets the end-of-sequence token as one.
        max_new_tokens (`int`):
            Most tokens of a response.
        temperature (`float`, *optional*, defaults to `1.0`):
            0 is greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`), top_k (`int`, *optional*, defaults to `0`):
            See [`sampling_config`].
        generation_kwargs (`dict`, *optional*):
            See [`sampling_config`].
        stop_ids (`Sequence[int]`, *optional*):
            Tokens that end a response; by default those of the tokenizer and the model.
        batch_size (`int`, *optional*):
            Most prompts at a time; by default all.
        seed (`int`, *optional*, defaults to `0`):
            Of the samples; see the rule at the top of this file.
        trainer ([`~transformers.Trainer`], *optional*):
            The trainer whose policy the model is.
        engine (`Callable`, *optional*, defaults to [`generate`]):
            What completes a batch: a function with its signature.

    Raises:
        BadInput: If `generation_kwargs` is at fault.

    Example:

    ```python
    sampler = Sampler(model, tokenizer, max_new_tokens=16, temperature=0)
    responses = sampler([tokenizer("2 + 2 =")["input_ids"]])
    print(responses.texts, responses.cut_off)
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        generation_kwargs: dict[str, Any] | None = None,
        stop_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        trainer: Trainer | None = None,
        engine: Callable = generate,
    ):
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        check_vocabulary(model, tokenizer)
        if stop_ids is None:
            stop_ids = stop_token_ids(tokenizer, model.generation_config)
        self.model, self.tokenizer, self.trainer, self.engine = model, tokenizer, trainer, engine
        self.config = sampling_config(
            tokenizer, stop_ids, max_new_tokens, temperature, top_p, top_k, generation_kwargs
        )
        self.stop_ids: list[int] = self.config.eos_token_id  # `generation_kwargs` may name another one
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, prompt_ids: Sequence[Sequence[int]], names: Sequence[Hashable] | None = None) -> Responses:
        """
        Args:
            prompt_ids (`Sequence[Sequence[int]]`):
                Token ids of the prompts; none empty.
            names (`Sequence`, *optional*):
                What each response is one to, such as the dataset's row and the number of the sample: the same name
                draws the same random numbers, another one others. By default the prompts' places.
        """
        seeds = self._seeds(prompt_ids, names, turn=1)
        with policy_for_generation(self.model, self.trainer) as model:
            ids = generate_completions(model, prompt_ids, self.config, self.batch_size, seeds, self.engine)
        return self._responses(ids)

    def attempts(
        self,
        prompt_ids: Sequence[Sequence[int]],
        next_turn: Callable[[int, list[list[int]]], list[list[int]]] | None = None,
        n_turns: int = 1,
        names: Sequence[Hashable] | None = None,
        model_inputs: Callable[[torch.Tensor, torch.Tensor], dict[str, Any]] | None = None,
    ) -> tuple[list[Responses], list[list[list[int]]]]:
        """
        Several attempts at each prompt, in one batch; see [`~attempts.sample_attempts`] for the arguments, and
        [`Sampler.__call__`] for the names.

        Returns:
            `tuple` of two lists over turns: the attempts, and the ids between an attempt and the next one.
        """
        with policy_for_generation(self.model, self.trainer) as model:

            def complete(ids, turn, **more):
                seeds = self._seeds(prompt_ids, names, turn)
                return self.engine(model, ids, self.config, seeds, model_inputs=model_inputs, **more)

            attempts, follow_ups = sample_attempts(complete, prompt_ids, next_turn, n_turns)
        return [self._responses(ids) for ids in attempts], follow_ups

    def _seeds(self, prompt_ids: Sequence, names: Sequence[Hashable] | None, turn: int) -> list[int]:
        names = range(len(prompt_ids)) if names is None else names
        return [seed_of(self.seed, name, turn) for name in names]

    def _responses(self, ids: list[list[int]]) -> Responses:
        cut_off = [not of_row or of_row[-1] not in self.stop_ids for of_row in ids]
        return Responses(ids, decode(self.tokenizer, ids), cut_off)
