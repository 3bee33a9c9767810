"""Values read later are those of the moment they were asked for."""

from __future__ import annotations

import pytest
import torch

from vaccel.cache.buffers import Buffers


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_reading_is_of_its_moment(device):
    buffers, value = Buffers(), torch.tensor([1.0, 2.0], device=device)
    first = buffers.read("value", value)
    value += 1
    assert first.tolist() == [1.0, 2.0]
    second = buffers.read("value", value)
    assert second.tolist() == [2.0, 3.0]
    assert first.tolist() == [1.0, 2.0], "read once, it stays"


@pytest.mark.gpu
def test_nobody_waits_before_it_is_read():
    buffers, value = Buffers(), torch.ones(2, device="cuda")
    buffers.read("value", value).tolist()  # allocates the pinned memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        reading = buffers.read("value", value)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reading.tolist() == [1.0, 1.0]
