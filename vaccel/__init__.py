"""vaccel: diffusion video generation several times faster, faithful to the full model.

import vaccel
handle = vaccel.accelerate(pipe, vaccel.DirectionMagnitude(threshold=0.005), small=small_transformer)
frames = pipe(prompt, num_inference_steps=50).frames
print(handle.trace)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .extras import needed

if TYPE_CHECKING:
    from . import actions, ops
    from .api import Handle, accelerate
    from .continuous import BatchedDenoiser
    from .denoiser import Denoiser
    from .engine import graphs
    from .engine.trace import Trace
    from .methods import (
        Auto,
        DirectionMagnitude,
        DualExpert,
        EasyCache,
        Forecast,
        LeMiCa,
        Method,
        MixCache,
        Schedule,
        SRDiffusion,
        TeaCache,
        method_from_json,
    )
    from .planning import artifacts

__version__ = "0.2.0"

__all__ = [
    "Auto",
    "BatchedDenoiser",
    "Denoiser",
    "DirectionMagnitude",
    "DualExpert",
    "EasyCache",
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
    "artifacts",
    "graphs",
    "method_from_json",
    "ops",
]

# Imported on first use: the ops and methods do not need diffusers, and `vaccel --help` does not need torch.
#: name -> its module
_LAZY = dict.fromkeys(__all__, "methods") | {
    "BatchedDenoiser": "continuous", "Denoiser": "denoiser", "Handle": "api", "Trace": "engine.trace",
    "accelerate": "api",
}  # fmt: skip
#: name -> the module that it is
_MODULES = {"artifacts": "planning.artifacts", "graphs": "engine.graphs"} | {
    name: name
    for name in (
        "actions",
        "cache",
        "calibrate",
        "engine",
        "explain",
        "methods",
        "models",
        "ops",
        "planning",
        "reference",
        "signals",
    )
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES and name not in _LAZY:
        raise AttributeError(f"module 'vaccel' has no attribute {name!r}")
    with needed(f"vaccel.{name}"):
        module = import_module(f".{_MODULES[name] if name in _MODULES else _LAZY[name]}", __name__)
        value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
