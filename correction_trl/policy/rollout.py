"""Which way responses are sampled, and from which weights; what is done instead when that way fails."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from ..errors import BadInput
from .captured_decoding import CapturedDecoding, Unsupported
from .generation import KeptRows, generate, generate_completions
from .gpu_memory import untouched_bytes
from .weight_copy import WeightCopy


logger = logging.getLogger(__name__)

ROLLOUT = ("auto", "eager", "compiled", "vllm")
ROLLOUT_WEIGHTS = ("auto", "dequantized", "merged", "as_trained")

# Memory that stays free beside the weights and the cache: for logits, activations, and what the driver takes.
MARGIN = 2**30


def check_rollout_settings(args: Any) -> None:
    """
    Check `rollout` and `rollout_weights` of a trainer's arguments, and make `rollout: vllm` its `use_vllm`, if it has
    one.

    Raises:
        BadInput: If they are unknown or contradict each other.
    """
    for name, known in (("rollout", ROLLOUT), ("rollout_weights", ROLLOUT_WEIGHTS)):
        if getattr(args, name) not in known:
            raise BadInput(f"`{name}={getattr(args, name)!r}` must be one of {', '.join(known)}.")
    takes_vllm = "use_vllm" in type(args).__dataclass_fields__
    if args.rollout == "vllm":
        if not takes_vllm:
            raise BadInput("`rollout: vllm` is not for this trainer; leave it out, or set 'compiled'.")
        args.use_vllm = True
    elif takes_vllm and args.use_vllm and args.rollout != "auto":
        raise BadInput(f"`use_vllm` and `rollout: {args.rollout}` contradict each other; leave one of them out.")


@dataclass
class KeptIds:
    """A batch's conversations so far, whose keys and values the static cache holds."""

    ids: list[list[int]]


class Rollouts:
    """
    Completes batches for a [`~generation.Sampler`] by the fastest way that the settings, the model and the card allow.

    The ways, each followed by what is done where it fails: captured steps on a 16-bit copy of the weights (`"merged"`
    or `"dequantized"`, see [`~weight_copy.WeightCopy`]), captured steps on the policy's own weights (`"as_trained"`),
    transformers' `generate` (`"eager"`). One line says what happened and what is done instead; a way that has failed
    is not tried again in the same run. The policy's own weights are never changed.

    The copy and the cache stay on the card between two updates once an update has left that much of it untouched; else
    they are given back when the responses are there.

    Args:
        rollout (`str`, *optional*, defaults to `"auto"`):
            `"eager"` (`generate`), `"compiled"` (static cache and captured steps; on a CPU the same steps without
            capturing), or `"auto"`: `"compiled"` on CUDA where the model allows it.
        weights (`str`, *optional*, defaults to `"auto"`):
            `"as_trained"`, `"dequantized"`, `"merged"`, or `"auto"`: `"dequantized"` for a 4-bit base if the memory
            allows it.
        batch_size (`int`, *optional*):
            Most rows at a time; by default all.
        resident (`bool`, *optional*, defaults to `False`):
            Whether nothing else will need the memory: the copy and the cache then stay from the beginning.

    Attributes:
        ways (`Counter[str]`):
            Responses by the way they were sampled.
    """

    def __init__(
        self, rollout: str = "auto", weights: str = "auto", batch_size: int | None = None, resident: bool = False
    ):
        self.rollout, self.weights, self.batch_size, self.resident = rollout, weights, batch_size, resident
        self.ways: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._model: PreTrainedModel | None = None
        self._captured: CapturedDecoding | None = None
        self._copy: WeightCopy | None = None
        self._kept: KeptIds | None = None
        self._keeps, self._must_give_back = False, False
        self._versions: tuple[int, ...] | None = None  # of the trained weights, when they were last sampled from
        self._longest = 0  # tokens of a row, over all turns
        self._said: set[str] = set()

    def _set_up(self, model: nn.Module) -> None:
        self.close()
        self._model, self._captured, self._copy = model, None, None
        self._keeps, self._must_give_back, self._versions, self._longest = False, False, None, 0
        self._device = model.device
        if self.rollout == "eager" or (self.rollout != "compiled" and self._device.type != "cuda"):
            return
        try:
            self._captured = CapturedDecoding(model)
        except Unsupported as reason:
            self._say(f"sampling with `generate`, because {reason}.")
            return
        if self.weights != "as_trained":
            copy = WeightCopy(self._captured.model, merged=self.weights == "merged")
            self._copy = copy if copy.n_bytes else None

    def pop_metrics(self) -> dict[str, float]:
        """`"rollout/<way>"`: share of the responses since the last call, for each way that was ever taken."""
        new = self.ways - self._reported
        self._reported = self.ways.copy()
        return {f"rollout/{way}": new[way] / new.total() for way in self.ways} if new else {}

    @contextmanager
    def hold(self) -> Iterator["Rollouts"]:
        """Within, the copy and the cache stay: nothing else needs the memory."""
        resident, self.resident = self.resident, True
        try:
            yield self
        finally:
            self.resident = resident
            if not resident:
                self._keeps = False
                self.close()

    def _say(self, line: str) -> None:
        if line not in self._said:
            logger.warning("Rollouts: %s", line)
            self._said.add(line)

    def close(self) -> None:
        """Give back the memory of the copy and the cache."""
        self._kept = None
        if self._captured is None:
            return
        self._captured.free()
        if self._copy is not None:
            self._copy.free()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def __call__(
        self,
        model: nn.Module,
        prompt_ids: Sequence[Sequence[int]],
        generation_config: GenerationConfig,
        seeds: Sequence[int] | None = None,
        continue_from: "KeptIds | KeptRows | None" = None,
        keep: bool = False,
        model_inputs: Callable | None = None,
    ) -> tuple[list[list[int]], "KeptIds | KeptRows | None"]:
        """See [`~generation.generate`]; any number of rows."""
        if not prompt_ids:
            return [], None
        if model is not self._model:
            self._set_up(model)
        if model_inputs is not None:
            if self._captured is not None:
                self._say("sampling with `generate`, because prompts have more than text.")
        elif self._captured is not None and not isinstance(continue_from, KeptRows):
            rows = [list(ids) for ids in prompt_ids]
            if continue_from is not None:
                rows = [before + ids for before, ids in zip(continue_from.ids, rows, strict=True)]
            continues = continue_from is not None and continue_from is self._kept
            completions = self._complete(rows, generation_config, seeds, continues, keep)
            if completions is not None:
                self._kept = KeptIds([a + b for a, b in zip(rows, completions, strict=True)]) if keep else None
                if not keep and not self._keeps:
                    self.close()
                return completions, self._kept
        if isinstance(continue_from, KeptIds):  # of captured steps, which have failed since
            prompt_ids = [before + list(ids) for before, ids in zip(continue_from.ids, prompt_ids, strict=True)]
            continue_from = None
        self.ways["eager"] += len(prompt_ids)
        if keep or continue_from is not None or model_inputs is not None:
            return generate(model, prompt_ids, generation_config, seeds, continue_from, keep, model_inputs)
        return generate_completions(model, prompt_ids, generation_config, self.batch_size, seeds), None

    def _complete(
        self,
        rows: list[list[int]],
        generation_config: GenerationConfig,
        seeds: Sequence[int] | None,
        continues: bool,
        keep: bool,
    ) -> list[list[int]] | None:
        """By captured steps; `None` if that cannot be, which one line has said."""
        if not continues:
            if self._keeps and untouched_bytes(self._device) < MARGIN:  # training has met longer rows than before
                self._keeps, self._must_give_back = False, True
                self.close()
            self._copy_is_fresh = False
        longest = max(map(len, rows)) + generation_config.max_new_tokens
        self._longest = max(self._longest, longest)
        while self._captured is not None:
            try:
                length = self._longest if keep else longest  # a later turn may come
                n_slots = self._make_room(len(rows), length)
                completions = self._captured.generate(rows, generation_config, n_slots, length, seeds, continues)
            except Unsupported as reason:
                self._say(f"sampling with `generate`, because {reason}.")
                return None
            except torch.OutOfMemoryError:
                self._step_down("the card ran out of memory")
            except RuntimeError as error:
                self._give_up(f"a captured step failed ({str(error).splitlines()[0][:120]})")
            else:
                self.ways[self._way] += len(completions)
                return completions
        return None

    @property
    def _way(self) -> str:
        if self._copy is None:
            return "as_trained"
        return "merged" if self._copy.merged else "dequantized"

    def _step_down(self, reason: str) -> None:
        """To the next slower way."""
        if self._copy is None:
            self._give_up(reason)
            return
        self._say(f"{reason}; sampling from the policy's own weights from here on.")
        self._captured.free()
        self._captured.copy = None
        self._copy.free()
        self._copy = None

    def _give_up(self, reason: str) -> None:
        self._say(f"{reason}; sampling with `generate` from here on.")
        self.close()
        self._captured = self._copy = None

    def _make_room(self, n_rows: int, length: int) -> int:
        """Copy the weights if they are to be, see to it that the cache will fit, and return how many prompts at a
        time do."""
        captured, copy = self._captured, self._copy
        n_slots = min(self.batch_size or n_rows, n_rows)
        needed = copy.n_bytes if copy is not None and not copy.addresses else 0
        if not captured.has_room(n_slots, length):
            needed += captured.cache_bytes(n_slots, length)
        versions = tuple(weight._version for weight in self._model.parameters() if weight.requires_grad)
        if needed:
            untouched = untouched_bytes(self._device)  # by training, since the last time
            was_trained = self._versions not in (None, versions)
            self._keeps = needed + MARGIN <= untouched and (self.resident or was_trained) and not self._must_give_back
            if needed + MARGIN > untouched and self._device.type == "cuda":
                torch.cuda.empty_cache()  # what training has used and given back
            free = untouched_bytes(self._device)
            if copy is not None and needed + MARGIN > free:
                self._step_down(
                    f"{self._way} weights and a cache of {n_slots} rows need {needed / 2**30:.1f} GiB, "
                    f"{free / 2**30:.1f} are free"
                )
                return self._make_room(n_rows, length)
            asked = n_slots
            while needed + MARGIN > free and n_slots > 1:
                n_slots = -(-n_slots // 2)
                needed = captured.cache_bytes(n_slots, length)
            if n_slots < asked:
                self._say(f"the cache of {asked} rows does not fit; sampling {n_slots} at a time.")
        if copy is not None and not self._copy_is_fresh:
            copy.refresh()
            self._copy_is_fresh = True
        captured.copy = copy
        self._versions = versions
        return n_slots
