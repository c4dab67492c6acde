"""A 16-bit copy of a policy's weights, to sample from.

A 4-bit layer is dequantized for every token that is generated. A copy is dequantized once:

* with the adapter beside it, as in training (`"dequantized"`): the function is the policy's own;
* with the adapter merged in (`"merged"`): two small products less per layer, and weights that are rounded.

Rounding W + s B A to the nearest number of 8 bits of mantissa would lose the adapter while it is young: its entries
are smaller than half the distance between two neighbouring weights, and W + s B A is W again. So it is rounded at
random, up or down with the probabilities that keep the mean: what the layer adds up, B A x, survives, and what is lost
is noise of no direction. `benchmarks/rollout_speed.py` measures both; see docs/performance.md.

The copy has no gradient and does not touch the policy: while it is in use, the layers' forward reads the copy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional as F


class WeightCopy:
    """
    Copies of all layers that gain by it: 4-bit layers and, merged, linear layers with LoRA. Others (embeddings, norms,
    DoRA, 8-bit layers) run as they are trained.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy, with its adapters inside (`PeftModel.get_base_model()`).
        merged (`bool`):
            Whether the adapters are merged in.
        rounds_at_random (`bool`, *optional*, defaults to `True`):
            See above.
    """

    def __init__(self, model: nn.Module, merged: bool, rounds_at_random: bool = True):
        self.merged, self.rounds_at_random = merged, rounds_at_random
        self._layers: list[nn.Module] = []
        inside: set[nn.Module] = set()  # base layers of merged LoRA layers come again as modules of their own
        for module in model.modules():
            if module not in inside and (isinstance(module, Linear4bit) or (merged and _can_be_merged(module))):
                self._layers.append(module)
                inside.update(module.modules())
        self._weights: list[torch.Tensor] = []

    @property
    def n_bytes(self) -> int:
        """Memory of the copy; 0 if no layer gains by it."""
        return sum(_shape(layer).numel() * _dtype(layer).itemsize for layer in self._layers)

    @property
    def addresses(self) -> tuple[int, ...]:
        return tuple(weight.data_ptr() for weight in self._weights)

    @torch.no_grad()
    def refresh(self) -> None:
        """
        Copy the weights, with the adapters that are active now if they are merged, in place: captured graphs go on
        reading the copy.

        Raises:
            torch.OutOfMemoryError: If the copy does not fit; nothing is held then.
        """
        try:
            for i, layer in enumerate(self._layers):
                is_new = i == len(self._weights)
                if is_new:
                    device = _base(layer).weight.device
                    self._weights.append(torch.empty(_shape(layer), dtype=_dtype(layer), device=device))
                if is_new or isinstance(layer, LoraLayer):  # what has no adapter does not change
                    self._copy(layer, self._weights[i])
        except torch.OutOfMemoryError:
            self.free()
            raise

    def free(self) -> None:
        self._weights = []

    def _copy(self, layer: nn.Module, out: torch.Tensor) -> None:
        base = _base(layer)
        weight = base.weight
        out.copy_(dequantize_4bit(weight.data, weight.quant_state) if isinstance(base, Linear4bit) else weight)
        if not isinstance(layer, LoraLayer) or layer.disable_adapters:
            return
        adapters = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
        if not adapters:
            return
        merged = out.float()
        for adapter in adapters:
            b, a = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
            merged.addmm_(b.float(), a.float(), alpha=layer.scaling[adapter])
        if self.rounds_at_random and out.dtype != torch.float32:
            merged = _dither(merged, out.dtype)
        out.copy_(merged)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within, the layers compute with the copy."""
        if not self._weights:
            yield
            return
        before = [vars(layer).get("forward") for layer in self._layers]
        for layer, weight in zip(self._layers, self._weights, strict=True):
            layer.forward = partial(_linear, weight=weight, bias=_base(layer).bias)
        try:
            yield
        finally:
            for layer, forward in zip(self._layers, before, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward


def _can_be_merged(module: nn.Module) -> bool:
    if not isinstance(module, LoraLayer):
        return False
    is_plain_lora = not module.lora_variant and not any(module.lora_bias.values()) and not module.merged
    return is_plain_lora and type(module.get_base_layer()) in (nn.Linear, Linear4bit)


def _base(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def _shape(layer: nn.Module) -> torch.Size:
    return torch.Size((_base(layer).out_features, _base(layer).in_features))


def _dtype(layer: nn.Module) -> torch.dtype:
    base = _base(layer)
    if isinstance(base, Linear4bit):
        return base.compute_dtype or base.weight.quant_state.dtype
    return base.weight.dtype


def _dither(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Plus half a unit of the last place of `dtype`, up or down, evenly: rounded to nearest, the mean stays x."""
    generator = torch.Generator(x.device).manual_seed(0)
    noise = torch.rand(x.shape, generator=generator, device=x.device).sub_(0.5)
    _, exponent = torch.frexp(x)
    return torch.ldexp(noise, exponent - 1).mul_(torch.finfo(dtype).eps).add_(x)


def _linear(x: torch.Tensor, *args, weight: torch.Tensor, bias: torch.Tensor | None, **kwargs) -> torch.Tensor:
    if torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    bias = bias if bias is None else bias.to(weight.dtype)
    return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
