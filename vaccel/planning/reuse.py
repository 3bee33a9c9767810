"""The errors of stretches whose steps reuse something of a computed one, in closed form.

In a flow (``vaccel.planning.flow``) by Euler's rule, x_(i+1) = x_i + ds_i v_i.  From a computed step f on, what is
reused is a multiple of v_f alone, whatever the latents are:

    the last output            vhat_i = v_f
    the output's residual      vhat_i = x'_i + (v_f - x_f) = v_f (1 + ds_f) ... (1 + ds_(i-1)),

where x'_i are the latents along the stretch: x'_(i+1) - x_f = (x'_i - x_f) + ds_i vhat_i, which is v_f times a number,
and begins at x'_f = x_f.  So the latents that enter step j are off by sum_i ds_i (vhat_i - v_i) over the skipped steps,
whose norm follows from the inner products of velocities that a Forecast calibration has recorded
(``vaccel.planning.gram``), and none of the latents' own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .gram import Gram

#: What can be reused, and whether it is a residual.
REUSED = {"output": False, "residual": True}


def reuse_errors(
    gram: Gram, error_growth: Sequence[float], reuse: str = "residual", max_gap: int = 7
) -> dict[tuple[int, int], float]:
    """The error of the finished latents (rms) of every stretch of at most ``max_gap`` steps, by (f, j).

    Steps f and j are computed, and those between them reuse what f has left.

    Args:
        error_growth: [T], the factor by which an error of the latents that enter a step has grown at the end.
        reuse: "residual" or "output".

    Raises ``ValueError`` for another ``reuse``.
    """
    if reuse not in REUSED:
        raise ValueError(f"reuse must be one of {', '.join(map(repr, REUSED))}, got {reuse!r}")
    products, ds, steps = gram.weighed("tensor").sum(axis=0), gram.widths, gram.num_steps
    found = {}
    for start in range(steps):
        weights, multiple = np.zeros(steps), 1.0  # of the velocities in the latents' error
        for end in range(start + 2, min(start + max_gap, steps - 1) + 1):
            i = end - 1
            if REUSED[reuse]:
                multiple *= 1 + ds[i - 1]
            weights[start] += ds[i] * multiple
            weights[i] = -ds[i]
            square = max(float(weights @ products @ weights), 0.0) / gram.elements
            found[start, end] = error_growth[end] * math.sqrt(square)
    return found
