"""What an error of a pipeline's loop says in a run that has skipped steps."""

from __future__ import annotations

import sys

import pytest
import tiny
import torch
from test_generic import Pipeline
from zoo.check import EverySecond, Everything

import vaccel


class Reading(Pipeline):
    """Takes what its model leaves behind out of every call, as attention maps are taken: once."""

    def _ask(self, x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        answer = super()._ask(x, *more)
        return answer + 0 * self.net.left.pop()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have notes from Python 3.11 on")
def test_a_pipeline_that_reads_inside_its_model_is_told_what_it_met():
    pipe = Reading()
    pipe.net.left = []
    pipe.net.register_forward_hook(lambda net, args, output: net.left.append(output))
    plain = pipe()
    with vaccel.accelerate(pipe, EverySecond()) as handle:
        with pytest.raises(IndexError, match="pop from empty list") as raised:
            pipe()
        assert "did not compute step 1 of this run" in raised.value.__notes__[0]
        with handle.using(None):
            assert torch.equal(pipe(), plain)
        with handle.using(Everything()):
            assert torch.equal(pipe(), plain)


@pytest.mark.parametrize("where", ["model", "callback"])
def test_errors_of_others_have_no_note(where, wan):
    def failing(*_):
        raise RuntimeError("gone")

    def ended(pipe, step, t, tensors):
        if step == 3 and where == "callback":
            failing()
        if step == 3:
            wan.transformer.register_forward_hook(failing)
        return tensors

    method = vaccel.Schedule([0, 2, 4], num_steps=6, reuse="output")
    with vaccel.accelerate(wan, method), pytest.raises(RuntimeError, match="gone") as raised:
        tiny.latents(wan, steps=6, callback_on_step_end=ended)
    assert not hasattr(raised.value, "__notes__")
