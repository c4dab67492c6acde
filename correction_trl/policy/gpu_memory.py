"""How much of a card this process may use, measured."""

import sys

import torch


def usable_bytes(device: torch.device) -> int:
    """
    Bytes that this process may hold on a device in all, what it holds already included: what others leave free, and no
    more than `torch.cuda.set_per_process_memory_fraction` allows. Off a GPU nothing is measured: no limit.
    """
    if device.type != "cuda":
        return sys.maxsize
    index = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(index)
    allowed = int(torch.cuda.get_per_process_memory_fraction(index) * total)
    return min(free + torch.cuda.memory_reserved(index), allowed)


def free_bytes(device: torch.device) -> int:
    """What is left of [`usable_bytes`]."""
    if device.type != "cuda":
        return sys.maxsize
    return usable_bytes(device) - torch.cuda.memory_allocated(device)


def untouched_bytes(device: torch.device) -> int:
    """What of [`usable_bytes`] PyTorch's allocator has not asked for: since its cache was emptied, nothing used it."""
    if device.type != "cuda":
        return sys.maxsize
    return usable_bytes(device) - torch.cuda.memory_reserved(device)
