"""Micro-batches by tokens: the rows of an update, sorted by length and cut so that no forward has more than so many.

Counted in rows, a micro-batch has to be small enough for the longest ones, and short rows then run one by one, where a
GPU waits for Python. Counted in tokens it is as large as the memory allows, whatever the rows. The gradient of an
update does not depend on how it is cut.
"""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType

from ..errors import BadInput
from .generation import seeded
from .gpu_memory import usable_bytes


# Of the card's memory, kept free beside what was measured: fragmentation, longer rows than those that were tried
MARGIN = 0.15


def read_max_tokens(value: Any) -> int | str | None:
    """The setting `max_tokens_per_micro_batch` as YAML or the command line gives it: a number, `"auto"` or `None`."""
    if value is None or str(value).lower() in ("none", "null"):
        return None
    if str(value).lower() == "auto":
        return "auto"
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise BadInput(
            f"`max_tokens_per_micro_batch={value!r}` must be a number of tokens, 'auto' (as many as the GPU's memory "
            "takes), or null (`per_device_train_batch_size` rows, however long)."
        )
    return number


class MicroBatches(list):
    """
    Batches that one call of `training_step` runs forward and backward one after the other. [`Trainer`] counts
    `gradient_accumulation_steps` steps per update; all but the last of them are empty.
    """


def cut_by_tokens(n_tokens: Sequence[int], max_tokens: float, n_at_least: int = 1) -> list[list[int]]:
    """
    Cut rows into micro-batches: longest first, each filled while its padded size stays within the budget.

    Args:
        n_tokens (`Sequence[int]`):
            Length of each row in tokens.
        max_tokens (`float`):
            Most tokens of a micro-batch, padding included. A row that is longer is a micro-batch of its own.
        n_at_least (`int`, *optional*, defaults to `1`):
            Fewest micro-batches, at most as many as rows: all processes need equally many.

    Returns:
        `list[list[int]]`: The rows of each micro-batch. Each row is in exactly one, and none is empty.
    """
    order = sorted(range(len(n_tokens)), key=lambda row: (-n_tokens[row], row))
    groups: list[list[int]] = []
    for row in order:
        # The first row of a group is its longest, so that is what the others are padded to
        if groups and (len(groups[-1]) + 1) * n_tokens[groups[-1][0]] <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    while len(groups) < min(n_at_least, len(n_tokens)):
        largest = max(range(len(groups)), key=lambda i: len(groups[i]))
        rows = groups[largest]
        groups[largest : largest + 1] = [rows[: (len(rows) + 1) // 2], rows[(len(rows) + 1) // 2 :]]
    return groups


class MicroBatchTrainerMixin:
    """
    What a trainer needs to train on [`MicroBatches`]. It stands before TRL's trainer in the bases; it overrides
    `training_step`, `floating_point_ops` and `_track_num_input_tokens`, and reads `args.max_tokens_per_micro_batch`.

    The loss of a micro-batch has to be its share of the update's loss already, times the number of micro-batches where
    `Trainer` divides by `current_gradient_accumulation_steps`.
    """

    current_gradient_accumulation_steps = 1  # until `Trainer` says it, with the first update
    _max_tokens: int | None = None  # what "auto" found
    _recorded = ("_metrics",)  # what a step changes beside gradients: put back after rows that are only tried

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not isinstance(inputs, MicroBatches):
            return super().training_step(model, inputs, num_items_in_batch)
        total = torch.zeros((), device=self.accelerator.device)
        sync = self.accelerator.gradient_state.sync_gradients
        n_steps, self.current_gradient_accumulation_steps = self.current_gradient_accumulation_steps, len(inputs)
        try:
            for i, batch in enumerate(inputs):
                is_last = i == len(inputs) - 1
                # Gradients are reduced over the processes once, with the last micro-batch
                self.accelerator.gradient_state._set_sync_gradients(sync and is_last)
                deferred = contextlib.nullcontext
                if not is_last and self.accelerator.distributed_type != DistributedType.DEEPSPEED:
                    deferred = functools.partial(self.accelerator.no_sync, model=model)
                with deferred():
                    total = total + self._run_micro_batch(model, batch, num_items_in_batch)
        finally:
            self.current_gradient_accumulation_steps = n_steps
            self.accelerator.gradient_state._set_sync_gradients(sync)
        return total

    def _run_micro_batch(self, model, batch: dict[str, Any], num_items_in_batch) -> torch.Tensor:
        """Forward and backward of one of them."""
        return super().training_step(model, batch, num_items_in_batch)

    def floating_point_ops(self, inputs):
        if isinstance(inputs, MicroBatches):
            return sum(super(MicroBatchTrainerMixin, self).floating_point_ops(batch) for batch in inputs)
        return super().floating_point_ops(inputs)

    def _track_num_input_tokens(self, inputs):
        for batch in inputs if isinstance(inputs, MicroBatches) else [inputs]:
            super()._track_num_input_tokens(batch)

    # ------------------------------------------------------------------ cutting

    def _counts_tokens(self) -> bool:
        """Whether an update is cut by tokens at all. `auto` does so where memory can be measured: on a GPU."""
        setting = self.args.max_tokens_per_micro_batch
        return setting is not None and (setting != "auto" or self.accelerator.device.type == "cuda")

    def _cut(
        self,
        n_tokens: Sequence[int],
        collate: Callable[[list[int]], dict[str, Any]],
        n_steps: int,
        at_most: int | float = math.inf,
    ) -> list[MicroBatches]:
        """An update of this process for [`Trainer`]'s `n_steps` steps: empty ones, and the last with everything."""
        max_tokens = self._max_tokens if self.args.max_tokens_per_micro_batch == "auto" else None
        max_tokens = min(at_most, max_tokens or self.args.max_tokens_per_micro_batch)
        groups = cut_by_tokens(n_tokens, max_tokens)
        # Every micro-batch of a sharded or replicated model may be a collective: equally many on all processes
        counts = torch.tensor([[len(groups), len(n_tokens)]], device=self.accelerator.device)
        counts = self.accelerator.gather(counts).view(-1, 2)
        n_groups = min(int(counts[:, 0].max()), int(counts[:, 1].min()))
        if len(groups) != n_groups:
            groups = cut_by_tokens(n_tokens, max_tokens, n_groups)
        return [MicroBatches() for _ in range(n_steps - 1)] + [MicroBatches(collate(group) for group in groups)]

    def _find_max_tokens(self, probe: Callable[[int], tuple[dict[str, Any], int]], n_rows: int):
        """
        `auto`, once per run: the memory that one and two of the longest rows take says what more of them would.

        `probe(n)` returns a batch of n of the longest rows, and its tokens; `n_rows` is the most that an update has.
        """
        if self._max_tokens is not None or self.args.max_tokens_per_micro_batch != "auto":
            return
        device = self.accelerator.device
        peaks, sizes = [], []
        for n in (1, 1, 2):  # the first one pays for what is allocated once
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            batch, size = probe(n)
            self._probe_step(batch)
            peaks.append(torch.cuda.max_memory_allocated(device))
            sizes.append(size)
        per_token = max((peaks[2] - peaks[1]) / max(sizes[2] - sizes[1], 1), 1.0)
        fixed = peaks[1] - per_token * sizes[1]
        usable = (1 - MARGIN) * usable_bytes(device) - self._optimizer_bytes_to_come()
        budget = int((usable - fixed) / per_token)
        # One value for all processes: the smallest. Not below one row, which has to fit in any case
        budget = torch.tensor([min(max(budget, sizes[1]), n_rows * sizes[1])], device=device)
        self._max_tokens = int(self.accelerator.gather(budget).min())

    def _probe_step(self, batch: dict[str, Any]):
        """Forward and backward on rows that are tried for their size alone; leaves no trace."""
        device = self.accelerator.device
        gradients = [(parameter, parameter.grad) for parameter in self.model.parameters() if parameter.requires_grad]
        recorded = {name: copy.deepcopy(getattr(self, name)) for name in self._recorded}
        n_tokens_seen, n_steps = self.state.num_input_tokens_seen, self.current_gradient_accumulation_steps
        try:
            self.current_gradient_accumulation_steps = 1
            with seeded(0, device):
                self._run_micro_batch(self.model_wrapped, batch, torch.tensor(1, device=device))
        finally:
            for name, value in recorded.items():
                setattr(self, name, value)
            self.state.num_input_tokens_seen = n_tokens_seen
            self.current_gradient_accumulation_steps = n_steps
            for parameter, gradient in gradients:
                parameter.grad = gradient

    def _optimizer_bytes_to_come(self) -> int:
        """What the optimizer will allocate at its first step, at most: two numbers in float32 per trained one."""
        if self.optimizer is None or self.optimizer.state:
            return 0
        return sum(2 * 4 * parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
