"""A transformer's own weights while experts are in their place: nothing of them remains, however the process ends."""

from __future__ import annotations

import tempfile
import time

import processes
import pytest
import torch
from made_experts import assert_given_back, folder, kept, pipe, pipeline

import vaccel
from vaccel.experts import weights as expert_weights

__all__ = ["folder", "pipe"]  # fixtures


def accelerated(folder, parking, ready, how):
    """In a process of its own: the experts' weights in place, then ended in this way, or by whoever waits."""
    tempfile.tempdir = str(parking)
    pipe = pipeline("wan")
    before = [p.detach().clone() for p in pipe.transformer.parameters()]
    handle = vaccel.accelerate(pipe, vaccel.DualExpert(folder))
    moved = any(not torch.equal(p, q) for p, q in zip(pipe.transformer.parameters(), before, strict=True))
    if how == "remove":
        handle.remove()
        moved &= all(torch.equal(p, q) for p, q in zip(pipe.transformer.parameters(), before, strict=True))
    ready.send(moved)
    while how != "remove":
        time.sleep(1)


@pytest.mark.parametrize("how", ["kill", "terminate", "remove"])
def test_no_ending_of_the_process_leaves_parked_weights(how, folder, tmp_path):
    parking = tmp_path / "parking"
    parking.mkdir()
    here, there = processes.pipe()
    running = processes.start(accelerated, folder, parking, there, how)
    assert here.recv()
    assert list(parking.iterdir()) == []
    if how != "remove":
        getattr(running, how)()
    running.join()
    assert running.exitcode == {"kill": -9, "terminate": -15, "remove": 0}[how]
    assert list(parking.iterdir()) == []


def test_no_room_to_park_is_said(pipe, folder, monkeypatch):
    before = kept(pipe)
    monkeypatch.setattr(expert_weights, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match=r"cannot be kept in a temporary file: No space left; set TMPDIR to a folder"):
        vaccel.accelerate(pipe, vaccel.DualExpert(folder))
    assert_given_back(pipe, before)
