"""A first-order solver of the path that a pipeline's scheduler samples, for a second recording of every sample.

A multistep solver's velocities along its own trajectory correlate a little otherwise than a first-order one's.  The
mean of their inner products, read by noise level, serves both: with UniPC's alone Euler loses 3 to 4 dB, with Euler's
beside them UniPC loses nothing.
"""

from __future__ import annotations

from typing import Any

import diffusers

#: Of the calibration's steps the other recording makes so many: other levels too.
SHARE = 0.8
#: Solvers that are of first order themselves.
OWN = ("Euler", "DDIM", "DDPM", "LCM", "TCD", "FlowMatchLCM")


def first_order(scheduler: Any) -> Any | None:
    """Euler for flows, DDIM for diffusion, on the same levels; None where the scheduler is one, or says too little."""
    config, name = scheduler.config, type(scheduler).__name__
    if name.startswith(OWN) or name.startswith("FlowMatchEuler"):
        return None
    if config.get("use_flow_sigmas", False) or name.startswith("FlowMatch"):
        shared = ("num_train_timesteps", "use_dynamic_shifting", "time_shift_type", "base_shift", "max_shift")
        settings = {key: config[key] for key in shared if key in config}
        shift = config.get("flow_shift", config.get("shift"))
        settings |= {"shift": shift} if shift is not None else {}
        return diffusers.FlowMatchEulerDiscreteScheduler(**settings)
    if getattr(scheduler, "alphas_cumprod", None) is None:
        return None
    if config.get("prediction_type") not in ("epsilon", "v_prediction", "sample"):
        return None
    return diffusers.DDIMScheduler.from_config(config, clip_sample=False)
