"""A path of computed steps as cache-dit's ``steps_computation_mask``; SGLang's diffusers backend reads it too."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..calibrate import lemica_from_forecast
from ..methods import Forecast, LeMiCa
from ..planning import artifacts

#: What cache-dit puts in the place of skipped steps: its calibrator's forecast, or the cached residual as it is.
STANDS_IN = ("taylorseer", "residual")


def cache_dit(
    artifact: str | Path, budget: int, *, stands_in: str = "taylorseer", first_blocks: int = 1
) -> dict[str, Any]:
    """The configuration that ``cache_dit.load_configs`` takes: which steps are computed, and nothing else decides.

    Only the path is ours.  What stands in for a skipped step is cache-dit's own, of the states within the model and not
    of velocities, so what a calibration predicts of ``vaccel.Forecast`` is not predicted of it.

    Args:
        artifact: of ``vaccel calibrate forecast`` or ``lemica``; it is for runs as they were calibrated.
        budget: how many steps are computed.
        stands_in: "taylorseer" for cache-dit's forecast of first order, on a path that was planned for forecasts; or
            "residual" for the cached one as it is, on a path that was planned for that (worked out of a Forecast
            calibration in closed form).  A LeMiCa artifact has one path for both.
        first_blocks: how many blocks cache-dit always computes, at least 1.

    Raises ``ValueError`` for a file that is neither, a budget that it cannot make, or a setting out of range.
    """
    if stands_in not in STANDS_IN:
        raise ValueError(f"stands_in must be one of {', '.join(map(repr, STANDS_IN))}, got {stands_in!r}")
    if type(first_blocks) is not int or first_blocks < 1:
        raise ValueError(f"first_blocks must be a whole number of at least 1, got {first_blocks!r}")
    method = _path(Path(artifact), budget, stands_in)
    computed = set(method.full_steps)
    fields: dict[str, Any] = {
        "num_inference_steps": method.num_steps,
        "Fn_compute_blocks": first_blocks,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 0,
        "steps_computation_mask": [int(step in computed) for step in range(method.num_steps)],
        "steps_computation_policy": "static",
    }
    if stands_in == "taylorseer":
        fields |= {"enable_taylorseer": True, "taylorseer_order": 1}
    return {"cache_config": fields}


def _path(artifact: Path, budget: int, stands_in: str) -> Forecast | LeMiCa:
    if artifacts.kind_of(artifact) == LeMiCa.id:
        return LeMiCa.load(artifact, budget)
    if stands_in == "taylorseer":
        return Forecast.load(artifact, budget)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "lemica.json"
        lemica_from_forecast(artifact, made)
        return LeMiCa.load(made, budget)
