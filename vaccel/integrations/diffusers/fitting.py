"""Whether a calibrated method is used on what it was calibrated with."""

from __future__ import annotations

from typing import Any

from ...methods import Method
from ...models.denoisers import denoisers_of
from ...models.fingerprints import differences


def mismatches(method: Method, pipe: Any) -> list[str]:
    """What a trace is to say where a calibrated method runs on what it was not calibrated with.

    Raises ``ValueError`` that names what differs (the model, its weights or adapters, the scheduler), unless the method
    allows it.
    """
    if not method.fitted:
        return []
    different, solver = differences(method.fitted, denoisers_of(pipe), pipe.scheduler)
    if not method.any_solver:
        different, solver = different + solver, []
    if different and not method.allow_mismatch:
        raise ValueError(
            f"this {type(method).__name__} was calibrated with another pipeline: {'; '.join(different)}. Calibrate it "
            f"for this one (`vaccel calibrate {method.id}`), or pass allow_mismatch=True to the method"
        )
    notes = [f"calibrated with another pipeline: {phrase}" for phrase in different]
    return notes + [f"calibrated with another solver on these noise levels: {phrase}" for phrase in solver]
