"""What a node's user may ask for, and what a run makes of it; the nodes themselves without ComfyUI."""

from __future__ import annotations

import comfyui_double as comfy
import pytest
from comfyui_tiny import last, model, run

from vaccel.integrations.comfyui import Choice, patched

pytestmark = comfy.needs_k_diffusion


@pytest.mark.parametrize("wrong", [
    ("Magic", "speed", 2.0), ("Auto", "threshold", 2.0), ("Forecast", "speed", 0.5), ("Forecast", "computed calls", 1),
    ("Auto", "psnr", float("nan")), ("Auto", "psnr", 2.0),
    ("EasyCache", "threshold", 2.0), ("Auto", "speed", 2.0, 0.9, 0.1), ("Schedule", "list", 0, 0.0, 1.0, "a-b"),
    ("Schedule", "list", 0, 0.0, 1.0, ""),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_any_forward(wrong):
    with pytest.raises(ValueError, match=r"must|takes|hold"):
        Choice(*wrong)


def test_a_schedule_by_list():
    fast = patched(model(), Choice("Schedule", "list", 0.0, calls="0-3, 6,9, 40"))
    run(fast)
    assert last(fast).timeline == "FFFFppFppFpppp"
    assert "computed 6 of 14 calls" in last(fast).report()


def test_few_steps_are_computed():
    fast = patched(model(), Choice("Auto", "speed", 2.0))
    run(fast, steps=6)
    assert last(fast).timeline == "F" * 6
    assert any("safe to skip" in note for note in last(fast).notes)
