"""A 16-bit copy of the weights that a policy has with its adapter merged in, for sampling from it.

A 4-bit layer under a LoRA adapter is a dequantization, a product and two small products for each token that is
generated. Merged, it is one product. The copy is of no use in training (its weights have no gradient) and does not
touch the policy: while it is in use the layers' forward reads the copy, afterwards the policy's own weights again.

The merged weight W + s B A is rounded once, to the dtype of the copy. `benchmarks/rollout_speed.py` measures what that
does to the distribution; see docs/performance.md.
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


class MergedWeights:
    """
    The merged copies of all layers of a policy that can be merged: 4-bit layers with or without LoRA, and plain linear
    layers with LoRA. Others (embeddings, norms, DoRA, 8-bit layers) run as they are trained.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy, with its adapters inside (`PeftModel.get_base_model()`).
    """

    def __init__(self, model: nn.Module):
        self._layers: list[nn.Module] = []
        inside: set[nn.Module] = set()  # base layers of LoRA layers come again as modules of their own
        for module in model.modules():
            if module not in inside and _can_be_merged(module):
                self._layers.append(module)
                inside.update(module.modules())
        self._weights: list[torch.Tensor] = []

    @property
    def n_bytes(self) -> int:
        """Memory of the copy; 0 if there is no layer to merge."""
        return sum(_shape(layer).numel() * _dtype(layer).itemsize for layer in self._layers)

    @property
    def addresses(self) -> tuple[int, ...]:
        return tuple(weight.data_ptr() for weight in self._weights)

    @torch.no_grad()
    def refresh(self) -> None:
        """
        Merge the adapters that are active now into the copy, in place: captured graphs go on reading it.

        Raises:
            torch.OutOfMemoryError: If the copy does not fit; nothing is held then.
        """
        try:
            for i, layer in enumerate(self._layers):
                if i == len(self._weights):
                    device = _base(layer).weight.device
                    self._weights.append(torch.empty(_shape(layer), dtype=_dtype(layer), device=device))
                _merge(layer, self._weights[i])
        except torch.OutOfMemoryError:
            self.free()
            raise

    def free(self) -> None:
        self._weights = []

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
        return isinstance(module, Linear4bit)
    base = module.get_base_layer()
    exact = not module.lora_variant and not any(module.lora_bias.values()) and not module.merged
    return exact and type(base) in (nn.Linear, Linear4bit) and isinstance(module, nn.Module)


def _base(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def _shape(layer: nn.Module) -> torch.Size:
    return torch.Size((_base(layer).out_features, _base(layer).in_features))


def _dtype(layer: nn.Module) -> torch.dtype:
    base = _base(layer)
    if isinstance(base, Linear4bit):
        return base.compute_dtype or base.weight.quant_state.dtype
    return base.weight.dtype


def _merge(layer: nn.Module, out: torch.Tensor) -> None:
    base = _base(layer)
    weight = base.weight
    out.copy_(dequantize_4bit(weight.data, weight.quant_state) if isinstance(base, Linear4bit) else weight)
    if not isinstance(layer, LoraLayer) or layer.disable_adapters:
        return
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            out += layer.get_delta_weight(adapter)  # computed in the adapter's dtype, rounded once


def _linear(x: torch.Tensor, *args, weight: torch.Tensor, bias: torch.Tensor | None, **kwargs) -> torch.Tensor:
    if torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    bias = bias if bias is None else bias.to(weight.dtype)
    return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
