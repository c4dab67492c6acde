"""Making 4-bit models trainable where bitsandbytes assumes that they are only used."""

from bitsandbytes.nn import Linear4bit
from torch import nn


def keep_trainable_on_cpu(model: nn.Module) -> None:
    """
    Stop 4-bit layers on a CPU from repacking their weights at the first forward in evaluation mode.

    On CPUs with AVX512-BF16, bitsandbytes then converts the weights, for good, to a layout whose kernel has no
    backward: after one evaluation nothing below such a layer would get a gradient any more, without an error. (The
    kernel also wants sizes that are multiples of its block of 64.)

    Args:
        model (`nn.Module`):
            The policy; layers that are not 4-bit are left alone.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
