"""What denoisers call the arguments of their forwards."""

from __future__ import annotations

import functools
import inspect

#: Names of the argument that says when a call is.
TIMESTEPS = ("timestep", "t", "sigma", "timestep_ratio", "timesteps", "time", "r", "timestep_img", "decoder_noise_time")


@functools.lru_cache(maxsize=256)
def parameters(kind: type) -> tuple[str, ...]:
    """The names of what the forward of a class of modules takes."""
    try:
        return tuple(inspect.signature(kind.forward).parameters)[1:]
    except (TypeError, ValueError, AttributeError):
        return ()


def is_time(name: str) -> bool:
    """Whether an argument of this name says when a call is."""
    return name in TIMESTEPS or "timestep" in name


def is_sample(name: str) -> bool:
    """Whether an argument of this name is what denoisers call their noisy input."""
    if name in ("x", "sample"):
        return True
    conditions = ("encoder", "text", "prompt", "cond", "image", "caption", "context", "pooled")
    named = name.endswith(("hidden_states", "latents", "sample"))
    return named and not any(word in name for word in conditions)
