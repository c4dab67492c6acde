"""Sampling at the speed of the card: a static cache, and decoding steps that are captured in a CUDA graph.

`generate` launches thousands of small kernels from Python for every token, and waits for the card after every token. A
captured step is launched at once, over buffers that stay where they are:

* Each prompt has a slot: a row of the key-value cache. The n-th token of a row lies in column n, whatever the other
  rows hold, so there is no padding between a prompt and its response, and a later turn goes on where the row ends.
* A step is captured for few shapes: the first n slots and the first k columns, both rounded up to a bucket.
* Every few steps the tokens are looked at. Rows that are done leave: waiting prompts take their slots, and when a
  smaller bucket holds what is left, the rows move together.
* A prompt that is to be sampled several times is computed once and copied to its other slots.

The last token of a prompt is not computed with the others: it is the input of the first step, as every sampled token
is that of the next. So nothing but steps makes logits.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module
from trl.data_utils import common_prefix_length

from .attention import MASK_PER_LAYER_TYPE, UNIFORM_WINDOW, unsupported_reason, unwrap_causal_lm
from .generation import choose_tokens, uniform_numbers
from .weight_copy import WeightCopy


logger = logging.getLogger(__name__)

# Steps between two looks at the tokens: a row that is done runs on for half of them, and every look costs a wait.
STEPS_PER_LOOK = 8

# Most tokens, padding included, of one forward pass over prompts.
PREFILL_TOKENS = 8192

# Settings that have no say in which token is drawn, or that `Sampling` knows.
_KNOWN_SETTINGS = {
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "max_new_tokens", "max_length"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "transformers_version"),
    *("use_cache", "cache_config", "max_cache_len", "disable_compile", "compile_config", "continuous_batching_config"),
}


class Unsupported(Exception):
    """Captured decoding cannot do this; the message says why, as a clause that can follow "because "."""


@dataclass
class Sampling:
    """How a token is drawn from logits: as `generate` does it, in the same order."""

    warpers: LogitsProcessorList | None  # None: the most likely token

    @classmethod
    def of(cls, model: PreTrainedModel, generation_config: GenerationConfig) -> "Sampling":
        config = complete_config(model, generation_config)
        usual = GenerationConfig()._get_default_generation_params()
        for name, value in config.to_dict().items():
            if name[0] != "_" and name not in _KNOWN_SETTINGS and value not in (None, False, usual.get(name)):
                raise Unsupported(f"it does not know the sampling parameter `{name}`")
        if config.max_new_tokens is None:
            raise Unsupported("`max_new_tokens` is not set")
        if not config.do_sample:
            return cls(None)
        warpers = LogitsProcessorList()
        if config.temperature is not None and config.temperature != 1.0:
            warpers.append(TemperatureLogitsWarper(config.temperature))
        if config.top_k is not None and config.top_k != 0:
            warpers.append(TopKLogitsWarper(config.top_k))
        if config.top_p is not None and config.top_p < 1.0:
            warpers.append(TopPLogitsWarper(config.top_p))
        if config.min_p is not None:
            warpers.append(MinPLogitsWarper(config.min_p))
        return cls(warpers)

    def draw(self, logits: torch.Tensor, uniform: torch.Tensor | None) -> torch.Tensor:
        """A token for each row of logits `(n, V)` in float32, with the numbers `(n, 1)` or torch's random state."""
        if self.warpers is None:
            return logits.argmax(-1, keepdim=True)
        scores = self.warpers(None, logits)
        if uniform is not None:
            return choose_tokens(scores, uniform)
        # The first of exponential clocks with these rates: what `torch.multinomial` does, without its check, which
        # waits for the card.
        probabilities = scores.softmax(-1)
        return probabilities.div_(torch.empty_like(probabilities).exponential_()).argmax(-1, keepdim=True)


def complete_config(model: PreTrainedModel, generation_config: GenerationConfig) -> GenerationConfig:
    """What `generate` makes of its `generation_config`: what is left out is the model's own, then transformers'."""
    config = deepcopy(generation_config)
    config.update(**model.generation_config.to_dict(), defaults_only=True, allow_custom_entries=True)
    config.update(**config._get_default_generation_params(), defaults_only=True)
    return config


def row_bucket(n: int) -> int:
    """1, 2, 4, 8, then multiples of 8 to 32, of 16 to 64, of 32 to 128 and so on: at most a third is padding."""
    size = 1
    while size < n:
        size += size if size < 8 else 1 << max(size.bit_length() - 2, 3)
    return size


def length_bucket(n: int) -> int:
    """Multiples of 128 to 512, of 256 to 1,024, of 512 to 2,048 and so on."""
    size = 128
    while size < n:
        size += max(128, 1 << (size.bit_length() - 2))
    return size


class _SlotCache(Cache):
    """Keys and values of all slots; `update` writes where `at` says and returns what `view` says."""

    def __init__(
        self, shapes: list[tuple[tuple[int, ...], tuple[int, ...]]], n_slots: int, length: int, dtype, device
    ):
        super().__init__(layers=[])
        self.n_slots, self.length = n_slots, length
        # Zeros: whatever lies in a masked column is multiplied by 0, and 0 times a stray NaN is NaN. (N, heads, K, D)
        self.keys, self.values = (
            [
                torch.zeros(n_slots, pair[which][0], length, pair[which][1], dtype=dtype, device=device)
                for pair in shapes
            ]
            for which in (0, 1)
        )
        self.slots = self.columns = self.n_columns = None

    def point(self, slots: torch.Tensor | int, columns: torch.Tensor, n_columns: int | None) -> None:
        """The next forward writes its tokens to `columns` (B, T) of `slots` (B), or of the first so many, and sees
        the first `n_columns` columns of these slots, or its own tokens alone (None)."""
        self.slots, self.columns, self.n_columns = slots, columns, n_columns

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        seen = []
        for cached, new in ((self.keys[layer_idx], key_states), (self.values[layer_idx], value_states)):
            if isinstance(self.slots, int):  # a step: these slots, in place
                rows = torch.arange(self.slots, device=new.device)
                cached[rows, :, self.columns[:, 0]] = new[:, :, 0].to(cached.dtype)
                seen.append(cached[: self.slots, :, : self.n_columns])
            else:
                cached[self.slots[:, None], :, self.columns] = new.transpose(1, 2).to(cached.dtype)  # (B, T, heads, D)
                seen.append(new if self.n_columns is None else cached[:, :, : self.n_columns][self.slots])
        return tuple(seen)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions and masks are given

    def copy_rows(self, sources: list[int], destinations: list[int], n_columns: int) -> None:
        for tensor in (*self.keys, *self.values):
            tensor[destinations, :, :n_columns] = tensor[sources, :, :n_columns]

    def swap_rows(self, a: list[int], b: list[int], n_columns: int) -> None:
        self.copy_rows(a + b, b + a, n_columns)


@dataclass
class _Row:
    index: int
    ids: list[int]  # prompt and what was sampled
    limit: int  # length at which it is cut off
    uniform: list[float] | None  # a number for each token that may come
    n_prompt: int = field(init=False)

    def __post_init__(self):
        self.n_prompt = len(self.ids)


class CapturedDecoding:
    """
    Sampling from one model with a static cache and captured steps; see the module's docstring.

    On a CPU the same steps run without capturing.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, unwrapped, in evaluation mode when it is sampled from.

    Raises:
        Unsupported: If the model's attention cannot take this cache.
    """

    def __init__(self, model: nn.Module):
        reason = unsupported_reason(model)
        self.model = unwrap_causal_lm(model)
        if reason is None and self.model.config._attn_implementation == "flex_attention":
            reason = "FlexAttention takes no mask of a static cache"
        if reason is None and (is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)):
            reason = "its weights are sharded over processes"
        devices = {parameter.device for parameter in self.model.parameters()}
        if reason is None and len(devices) != 1:
            reason = f"the model lies on {len(devices)} devices"
        if reason is not None:
            raise Unsupported(reason)
        self.device = devices.pop()
        config = self.model.config
        family = type(self.model).__name__
        if family in MASK_PER_LAYER_TYPE:
            window = {"full_attention": None, "sliding_attention": config.sliding_window}
            self._windows = {layer_type: window[layer_type] for layer_type in dict.fromkeys(config.layer_types)}
        else:
            self._windows = {None: config.sliding_window if family in UNIFORM_WINDOW else None}
        self.copy: WeightCopy | None = None  # set by whoever decides which weights are sampled from
        self.prefilled_tokens = 0
        self._shapes = None
        self._stream = self._pool = None
        self._said: set[tuple[int, int]] = set()
        self.free()

    # Memory

    def free(self) -> None:
        """Give back the cache and the graphs."""
        self._cache: _SlotCache | None = None
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._captured_state = None
        self._held: dict[int, list[int]] = {}  # slot -> ids that its columns hold
        self._slot_of: dict[int, int] = {}  # row of the last call -> slot

    def cache_bytes(self, n_slots: int, length: int) -> int:
        """Memory of a cache for rows of so many tokens, from the keys and values that the model makes of one token."""
        self._probe()
        elements = sum(heads * dim for pair in self._shapes for heads, dim in pair)
        # One column more than tokens, where padding is written
        return elements * row_bucket(n_slots) * length_bucket(length + 1) * self._dtype.itemsize

    def has_room(self, n_slots: int, length: int) -> bool:
        """Whether the cache that is there holds so much."""
        cache = self._cache
        return cache is not None and cache.n_slots >= row_bucket(n_slots) and cache.length > length

    @torch.no_grad()
    def _probe(self) -> None:
        if self._shapes is not None:
            return
        cache = DynamicCache(config=self.model.config)
        ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with self._context():
            output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache)
        # (heads, dim) of keys and of values in each layer
        self._shapes = [
            tuple((states.shape[1], states.shape[3]) for states in (layer.keys, layer.values))
            for layer in cache.layers
        ]
        self._dtype = cache.layers[0].keys.dtype
        self._score_dtype = self._dtype
        self._n_words = output.logits.shape[-1]

    def _reserve(self, n_slots: int, length: int) -> None:
        self._probe()
        if self.has_room(n_slots, length):
            return
        n_slots, length = row_bucket(n_slots), length_bucket(length + 1)
        self.free()
        self._cache = _SlotCache(self._shapes, n_slots, length, self._dtype, self.device)
        # What a step reads and writes
        self._tokens = torch.zeros(n_slots, 1, dtype=torch.long, device=self.device)
        self._positions = torch.zeros(n_slots, 1, dtype=torch.long, device=self.device)
        self._limits = torch.zeros(n_slots, 1, dtype=torch.long, device=self.device)
        self._sampled = torch.zeros(n_slots, STEPS_PER_LOOK, dtype=torch.long, device=self.device)
        self._logits = torch.zeros(n_slots, self._n_words, dtype=torch.float32, device=self.device)

    # Forward passes

    @contextmanager
    def _context(self) -> Iterator[None]:
        """The surrounding autocast without its cache of weights, which would be captured once and for all."""
        kind = self.device.type
        enabled = torch.is_autocast_enabled(kind)
        autocast = (
            torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False) if enabled else nullcontext()
        )
        with autocast, self.copy.in_use() if self.copy is not None else nullcontext():
            yield

    def _masks(self, positions: torch.Tensor, n_columns: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Masks (B, 1, T, K), added to the scores, for queries at `positions` (B, T)."""
        columns = torch.arange(n_columns, device=self.device)
        masks = {}
        for layer_type, window in self._windows.items():
            seen = columns <= positions[..., None]  # (B, T, K)
            if window is not None:
                seen = seen & (columns > positions[..., None] - window)
            mask = torch.zeros(seen.shape, dtype=self._score_dtype, device=self.device)
            masks[layer_type] = mask.masked_fill_(~seen, float("-inf"))[:, None]
        return masks[None] if None in masks else masks

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, masks) -> torch.Tensor:
        with self._context():
            output = self.model(
                input_ids=ids,
                attention_mask=masks,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[:, -1]

    def _prefill(self, rows: list[tuple[int, list[int], int]]) -> None:
        """Compute the tokens of `(slot, ids, start)` from `start` on, into their slots."""
        rows = sorted(rows, key=lambda row: len(row[1]) - row[2])
        first = 0
        while first < len(rows):
            end, width = first, 0
            while end < len(rows):
                wider = -(-(len(rows[end][1]) - rows[end][2]) // 8) * 8
                if end > first and wider * (end + 1 - first) > PREFILL_TOKENS:
                    break
                end, width = end + 1, wider
            self._prefill_together(rows[first:end], width)
            first = end

    def _prefill_together(self, rows: list[tuple[int, list[int], int]], width: int) -> None:
        # Rows are padded on the right. Padding is written to the last column, which no token is given.
        scratch = self._cache.length - 1
        ids, columns, positions = [], [], []
        for _, row_ids, start in rows:
            n_padding = width - (len(row_ids) - start)
            ids.append(row_ids[start:] + [0] * n_padding)
            columns.append([*range(start, len(row_ids))] + [scratch] * n_padding)
            positions.append([*range(start, len(row_ids))] + [len(row_ids) - 1] * n_padding)
        slots = torch.tensor([slot for slot, _, _ in rows], device=self.device)
        ids, columns, positions = (torch.tensor(x, device=self.device) for x in (ids, columns, positions))
        self.prefilled_tokens += sum(len(row_ids) - start for _, row_ids, start in rows)
        if any(start for _, _, start in rows):
            n_columns = min(-(-max(len(row_ids) for _, row_ids, _ in rows) // 8) * 8, self._cache.length)
            masks = self._masks(positions, n_columns)
        else:  # nothing lies in front of these rows: they see themselves, up to themselves
            n_columns = None
            masks = self._masks(torch.arange(width, device=self.device)[None], width)
        self._cache.point(slots, columns, n_columns)
        self._forward(ids, positions, masks)

    def _step(self, n_rows: int, n_columns: int) -> None:
        """Logits of the next token in the first slots."""
        positions = self._positions[:n_rows]
        self._cache.point(n_rows, positions, n_columns)
        logits = self._forward(self._tokens[:n_rows], positions, self._masks(positions, n_columns))
        self._logits[:n_rows].copy_(logits)

    def _run_step(self, n_rows: int, n_columns: int) -> None:
        if self.device.type != "cuda":
            self._step(n_rows, n_columns)
            return
        graph = self._graphs.get((n_rows, n_columns))
        if graph is None:
            graph = self._graphs[n_rows, n_columns] = self._capture(n_rows, n_columns)
        graph.replay()

    def _capture(self, n_rows: int, n_columns: int) -> torch.cuda.CUDAGraph:
        if (n_rows, n_columns) not in self._said:
            logger.warning("Rollouts: capturing decoding steps of %d rows over up to %d tokens.", n_rows, n_columns)
            self._said.add((n_rows, n_columns))
        if self._stream is None:  # one for all: libraries keep a workspace for each
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        # Once outside of the graph: libraries set themselves up at their first call. It computes what the graph will.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._step(n_rows, n_columns)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (a teacher that is being asked) may use the card meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            self._step(n_rows, n_columns)
        return graph

    def _drop_outdated_graphs(self) -> None:
        """A graph reads addresses: it is worth nothing when weights lie elsewhere or other adapters are on."""
        kind = self.device.type
        tuners = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        state = (
            tuple(tensor.data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())),
            self.copy.addresses if self.copy is not None else None,
            tuple((tuple(tuner.active_adapters), tuner.disable_adapters, tuner.merged) for tuner in tuners),
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        )
        if state != self._captured_state:
            self._graphs.clear()
            self._captured_state = state

    # Rows in and out

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        generation_config: GenerationConfig,
        n_slots: int | None = None,
        length: int | None = None,
        seeds: Sequence[int] | None = None,
        continues: bool = False,
    ) -> list[list[int]]:
        """
        Complete each prompt once.

        Args:
            prompt_ids (`Sequence[Sequence[int]]`):
                Token ids of the prompts; none empty.
            generation_config ([`~transformers.GenerationConfig`]):
                Sampling parameters, with `max_new_tokens`, and `eos_token_id` (an `int` or a list).
            n_slots (`int`, *optional*):
                Most prompts at a time; by default all of them.
            length (`int`, *optional*):
                Tokens of a row to make room for, if a later turn will need more than this one.
            seeds (`Sequence[int]`, *optional*):
                One per row, see [`~generation.generate`].
            continues (`bool`, *optional*, defaults to `False`):
                Whether row i goes on from row i of the call before, with the same weights: what they have in common is
                not computed again.

        Returns:
            `list[list[int]]`: Ids of each completion, up to and including its first stop token.

        Raises:
            Unsupported: If the sampling parameters are not known here.
        """
        sampling = Sampling.of(self.model, generation_config)
        stop_ids = generation_config.eos_token_id
        stop_ids = {stop_ids} if isinstance(stop_ids, int) else set(stop_ids)
        if not prompt_ids:
            return []
        n_new = generation_config.max_new_tokens
        row_wise = seeds is not None and sampling.warpers is not None
        uniform = uniform_numbers(seeds, n_new).tolist() if row_wise else [None] * len(prompt_ids)
        rows = [_Row(i, list(ids), len(ids) + n_new, uniform[i]) for i, ids in enumerate(prompt_ids)]
        n_slots = min(n_slots or len(rows), len(rows))
        self._reserve(n_slots, max(length or 0, *(row.limit for row in rows)))
        self._drop_outdated_graphs()
        if not continues or len(rows) > self._cache.n_slots:
            self._held, self._slot_of = {}, {}

        active: dict[int, _Row] = {}  # by slot
        waiting = deque(sorted(rows, key=lambda row: -len(row.ids)))
        while waiting or active:
            # A few at a time are not worth a forward pass of their own, as long as others are at work
            if waiting and (not active or n_slots - len(active) >= min(len(waiting), max(n_slots // 8, 1))):
                self._admit([waiting.popleft() for _ in range(min(len(waiting), n_slots - len(active)))], active)
            n_rows = self._move_together(active)
            n_steps = min(STEPS_PER_LOOK, max(row.limit - len(row.ids) for row in active.values()))
            sampled = self._decode(active, n_rows, n_steps, sampling)
            for slot, row in list(active.items()):
                for token in sampled[slot]:
                    row.ids.append(token)
                    if token in stop_ids or len(row.ids) == row.limit:
                        del active[slot]
                        break
                self._held[slot] = row.ids[:-1]  # the last token has not been computed
        return [row.ids[row.n_prompt :] for row in rows]

    def _admit(self, rows: list[_Row], active: dict[int, _Row]) -> None:
        free = [slot for slot in range(self._cache.n_slots) if slot not in active]
        theirs = {row.index: self._slot_of[row.index] for row in rows if self._slot_of.get(row.index) in free}
        others = [slot for slot in free if slot not in theirs.values()]
        to_compute, copies, leaders = [], [], {}
        for row in rows:
            slot = theirs.get(row.index)
            held = self._held.get(slot, []) if slot is not None else []
            if slot is None:
                slot = others.pop(0)
            ids = row.ids[:-1]
            # What of the slot is the beginning of this row
            start = common_prefix_length(held, ids)
            if start < len(ids):
                leader = leaders.setdefault(tuple(ids), slot) if start == 0 else slot
                if leader != slot:
                    copies.append((leader, slot, len(ids)))
                else:
                    to_compute.append((slot, ids, start))
            active[slot] = row
            self._slot_of[row.index] = slot
            self._held[slot] = ids
        self._prefill(to_compute)
        if copies:
            sources, destinations, lengths = zip(*copies, strict=True)
            self._cache.copy_rows(list(sources), list(destinations), max(lengths))

    def _move_together(self, active: dict[int, _Row]) -> int:
        """Active rows into the first slots of the smallest bucket that holds them; its size."""
        n_rows = min(row_bucket(len(active)), self._cache.n_slots)
        outside = [slot for slot in active if slot >= n_rows]
        if outside:
            inside = [slot for slot in range(n_rows) if slot not in active][: len(outside)]
            longest = max(len(self._held.get(slot, [])) for slot in outside + inside)
            self._cache.swap_rows(inside, outside, longest)
            places = dict(zip(inside + outside, outside + inside, strict=True))
            self._held = {places.get(slot, slot): ids for slot, ids in self._held.items()}
            self._slot_of = {index: places.get(slot, slot) for index, slot in self._slot_of.items()}
            for slot in outside:
                active[places[slot]] = active.pop(slot)
        return n_rows

    def _decode(self, active: dict[int, _Row], n_rows: int, n_steps: int, sampling: Sampling) -> list[list[int]]:
        """The next `n_steps` tokens of the first `n_rows` slots; what lies behind a row's end or limit is void."""
        tokens, positions, limits, uniform = [], [], [], None
        for slot in range(n_rows):
            row = active.get(slot)
            length = len(row.ids) if row is not None else len(self._held.get(slot, [])) + 1
            tokens.append(row.ids[-1] if row is not None else 0)
            positions.append(length - 1)
            # A row that is done, or runs over its limit, writes to the column behind its last computed token
            limits.append(row.limit - 1 if row is not None else length - 1)
        n_columns = max(min(position + n_steps, limit + 1) for position, limit in zip(positions, limits, strict=True))
        n_columns = min(length_bucket(n_columns), self._cache.length)
        if any(row.uniform is not None for row in active.values()):
            rows = [active.get(slot) for slot in range(n_rows)]
            numbers = [[] if row is None else row.uniform[len(row.ids) - row.n_prompt :][:n_steps] for row in rows]
            uniform = torch.tensor([of_row + [0.0] * (n_steps - len(of_row)) for of_row in numbers]).to(self.device)
        for buffer, values in ((self._tokens, tokens), (self._positions, positions), (self._limits, limits)):
            buffer[:n_rows, 0] = torch.tensor(values)
        for i in range(n_steps):
            self._run_step(n_rows, n_columns)
            drawn = sampling.draw(self._logits[:n_rows], None if uniform is None else uniform[:, i : i + 1])
            self._tokens[:n_rows] = drawn
            self._sampled[:n_rows, i : i + 1] = drawn
            torch.minimum(self._positions[:n_rows] + 1, self._limits[:n_rows], out=self._positions[:n_rows])
        return self._sampled[:n_rows, :n_steps].tolist()
