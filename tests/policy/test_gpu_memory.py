"""What a card has left, from the driver's and torch's figures (a stand-in: there is no GPU here)."""

import sys

import pytest
import torch

from correction_trl.policy.gpu_memory import free_bytes, usable_bytes


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
@pytest.mark.parametrize(("fraction", "usable"), [(1.0, 70), (0.5, 50)])
def test_what_others_leave_and_what_this_process_may_hold(monkeypatch, device, fraction, usable):
    def with_index(value):
        def ask(index):
            assert type(index) is int, "some of torch's functions refuse a device without an index"
            return value

        return ask

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", with_index((40, 100)))  # others and this process hold 60
    monkeypatch.setattr(torch.cuda, "memory_reserved", with_index(30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", with_index(fraction))
    assert usable_bytes(torch.device(device)) == usable
    assert free_bytes(torch.device(device)) == usable - 20


def test_off_a_gpu_nothing_is_measured():
    assert usable_bytes(torch.device("cpu")) == free_bytes(torch.device("cpu")) == sys.maxsize
