"""vaccel: diffusion video generation several times faster, faithful to the full model.

import vaccel
handle = vaccel.accelerate(pipe, vaccel.DirectionMagnitude(threshold=0.005), small=small_transformer)
frames = pipe(prompt, num_inference_steps=50).frames
print(handle.trace)
"""

from __future__ import annotations

from . import actions, ops
from .engine.trace import Trace
from .methods import (
    Auto,
    DirectionMagnitude,
    DualExpert,
    Forecast,
    LeMiCa,
    Method,
    MixCache,
    Schedule,
    SRDiffusion,
    TeaCache,
    method_from_json,
)

__version__ = "0.1.0"

__all__ = [
    "Auto",
    "Denoiser",
    "DirectionMagnitude",
    "DualExpert",
    "Forecast",
    "Handle",
    "LeMiCa",
    "Method",
    "MixCache",
    "SRDiffusion",
    "Schedule",
    "TeaCache",
    "Trace",
    "accelerate",
    "actions",
    "method_from_json",
    "ops",
]

_LAZY = {"accelerate": "api", "Handle": "api", "Denoiser": "denoiser"}


def __getattr__(name: str):
    """What needs diffusers is imported on first use: the ops and methods alone do not."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module 'vaccel' has no attribute {name!r}")
