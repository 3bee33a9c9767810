"""LeMiCa's calibration (arXiv 2511.00090) from a Forecast calibration: every edge in closed form, without a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..methods.lemica import LeMiCa
from ..planning import artifacts
from ..planning.calibration import Calibration, calibration
from ..planning.reuse import reuse_errors

#: Mean absolute value over root mean square of a normal distribution: LeMiCa's errors are the former.
MEAN_OF_RMS = math.sqrt(2 / math.pi)
#: What skipped steps may reuse; the whole output's residual stands for that of the blocks, whose head is computed anew.
REUSES = ("blocks", "residual", "output")


def lemica_from_forecast(
    forecast: str | Path, path: str | Path, *, reuse: str = "blocks", max_gap: int = 7
) -> dict[str, Any]:
    """Writes the LeMiCa artifact ``path`` that follows from the Forecast artifact ``forecast``, and returns its data.

    The error of an edge is that of the latents at its end, which is exact for runs by Euler's rule that reuse the
    output or its residual (``vaccel.planning.reuse``), times the error growth that was measured from there on.

    Args:
        reuse: what skipped steps reuse: "blocks" (by the errors of "residual"), "residual" or "output".
        max_gap: longest edge, in steps.

    Raises ``ValueError`` for a file that is no Forecast artifact, for one whose model does not predict the velocity
    (what it reuses depends on more than velocities), and for a setting out of range.
    """
    if reuse not in REUSES:
        raise ValueError(f"reuse must be one of {', '.join(map(repr, REUSES))}, got {reuse!r}")
    if max_gap < 2:
        raise ValueError(f"max_gap must be >= 2, got {max_gap}")
    known = calibration(forecast)
    if not _of_velocities(known):
        raise ValueError(
            f"{forecast} is not known to be of a model that predicts the velocity, as flow-matching models do, and for "
            "others these errors do not follow from it: measure them, with calibrate_lemica(pipe, ...)"
        )
    errors = reuse_errors(known.gram, known.error_growth, "output" if reuse == "output" else "residual", max_gap)
    names = ("schema", "num_steps", "model", "weights", "scheduler", "call", "prompts")
    data = {name: known.data[name] for name in names if name in known.data} | {
        "method": LeMiCa.id, "reuse": reuse, "max_gap": max_gap, "compare": "latents", "tails": "closed form",
        "samples": {"closed form": {
            "errors": {f"{i}-{j}": MEAN_OF_RMS * error for (i, j), error in errors.items()},
            "forwards": 0, "small_forwards": 0, "done": True,
        }},
    }  # fmt: skip
    artifacts.replace(Path(path), data)
    return data


def _of_velocities(known: Calibration) -> bool:
    """Whether the model is known to predict the velocity: its scheduler is one of flow matching."""
    scheduler = known.data["scheduler"]
    config = scheduler.get("config") or {}
    flows = config.get("use_flow_sigmas") is True or config.get("prediction_type") == "flow_prediction"
    return flows or str(scheduler.get("class", "")).startswith("FlowMatch")
