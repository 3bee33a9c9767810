"""A first-order solver of the path that a pipeline's scheduler samples, for a second recording of every sample.

A multistep solver's velocities along its own trajectory correlate a little otherwise than a first-order one's.  The
mean of their inner products, read by noise level, serves both: with UniPC's alone Euler loses 3 to 4 dB, with Euler's
beside them UniPC loses nothing.
"""

from __future__ import annotations

import inspect
from typing import Any

import diffusers

#: Of the calibration's steps the other recording makes so many: other levels too.
SHARE = 0.8
#: Solvers that are of first order themselves.
OWN = ("Euler", "FlowMatchEuler", "DDIM", "DDPM", "LCM", "TCD", "FlowMatchLCM")


def of_class(kind: type, scheduler: Any, **settings: Any) -> Any:
    """A scheduler of this class with the settings of another one, whatever the shift of its levels is called."""
    taken = inspect.signature(kind.__init__).parameters  # of others diffusers would warn
    shift = scheduler.config.get("flow_shift", scheduler.config.get("shift"))
    known = {"flow_shift": shift, "shift": shift} if shift is not None else {}
    known = {**scheduler.config, **known, **settings}
    return kind.from_config({name: value for name, value in known.items() if name in taken})


def named(name: str, scheduler: Any) -> Any:
    """A scheduler of the class of this name with the settings of another one.  Raises ``ValueError`` for no class."""
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(f"{name!r} is no scheduler class of diffusers")
    return of_class(kind, scheduler)


def first_order(scheduler: Any) -> Any | None:
    """Euler for flows, DDIM for diffusion, on the same levels; None where the scheduler is one, or says too little."""
    config, name = scheduler.config, type(scheduler).__name__
    if name.startswith(OWN):
        return None
    if config.get("use_flow_sigmas", False) or name.startswith("FlowMatch"):
        return of_class(diffusers.FlowMatchEulerDiscreteScheduler, scheduler)
    known = config.get("prediction_type") in ("epsilon", "v_prediction", "sample")
    if getattr(scheduler, "alphas_cumprod", None) is None or not known:
        return None
    return of_class(diffusers.DDIMScheduler, scheduler, clip_sample=False)


def fewer(steps: int) -> int:
    """How many steps the other recording makes."""
    return max(2, round(SHARE * steps))
