"""What to try next, by what a run did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..actions import Full
from ..methods.auto import FEW
from ..methods.base import _METHODS, Method
from ..methods.recording import Recording

if TYPE_CHECKING:
    from ..engine.trace import Trace
    from .explanation import Watched

CALIBRATE = "vaccel calibrate forecast PIPELINE"


def advice(trace: Trace, watched: Sequence[Watched]) -> Iterator[str]:
    """Sentences, each with what to type or to change."""
    name = str(trace.method.get("method"))
    kind = _METHODS.get(name, Method)
    if not trace.steps:
        yield "no step was followed: `vaccel doctor --pipeline PIPELINE` shows what is seen of the pipeline"
        return
    if not trace.finished:
        yield f"the run stopped after {len(trace.steps)} of {trace.num_steps} steps: what it did so far is shown"
    if kind is Recording:
        yield "the run was recorded to learn from, so all was computed: the next run of this pipeline is accelerated"
    elif all(isinstance(step.action, Full) for step in trace.steps):
        yield from _nothing_skipped(trace, watched)
    else:
        yield from _skipped(trace, watched, name)


def _nothing_skipped(trace: Trace, watched: Sequence[Watched]) -> Iterator[str]:
    bounds = [one for one in watched if one.bound is not None and one.bound_name == "threshold"]
    if bounds:
        for one in bounds:
            least = min((v for _, v in one.known if math.isfinite(v)), default=None)
            if least is None:
                yield f"nothing was skipped because {one.name!r} was no number: the model's outputs are not finite"
            elif least >= one.bound:
                yield (
                    f"nothing was skipped because {one.name!r} was never below threshold={one.bound:g}: the smallest "
                    f"was {least:.3g}, so try threshold={_above(least)} and compare with `vaccel compare`"
                )
            else:
                yield f"nothing was skipped though {one.name!r} was below its threshold: the reasons are above"
    elif any("cached" in step.reason for step in trace.steps):
        yield "nothing was skipped because what would have been reused was missing: the reasons are above"
    elif trace.num_steps <= FEW:
        yield (
            f"nothing was skipped: {FEW} steps or less are computed in full until a calibration shows which can be "
            f"spared: `{CALIBRATE} --steps {trace.num_steps}`"
        )
    else:
        yield (
            "nothing was skipped: either all steps were asked for, or nothing is known of this model that allows it: "
            f"`{CALIBRATE} --steps {trace.num_steps}` measures it, and a lower PSNR or a speed lets more be skipped: "
            '`-m "Auto(speedup=2)"`'
        )


def _skipped(trace: Trace, watched: Sequence[Watched], name: str) -> Iterator[str]:
    notes = " ".join(trace.notes)
    if name == "forecast":
        if "as other models'" in notes or "not calibrated" in notes or not trace.method.get("artifact"):
            measures = f"`{CALIBRATE} --steps {trace.num_steps}`"
            yield f"what is predicted was measured on other models: {measures} measures yours"
        elif not any("measured" in step.metrics for step in trace.steps):
            yield "forecasts were not compared with computed steps: guard=2.0 in the method does that, and steps in"
        if "forecast errors too large" in notes:
            yield f"this prompt is out of the calibration's ordinary: `{CALIBRATE} -p PROMPT` with more like it"
    for one in watched:
        if one.bound is not None and one.bound_name == "threshold" and one.known:
            yield (
                f"a larger threshold than {one.bound:g} skips more and is less faithful, a smaller one the other way "
                "round: `vaccel compare PIPELINE -m ...` shows both"
            )
            break
    low = trace.predicted.get("psnr_low")
    if low is not None and 20 <= low < 100:
        asked = f'`vaccel generate PROMPT -m "Auto(psnr={low - 8:.0f})"`'
        yield (
            f"fewer steps are computed where less is asked for: {asked}; "
            "`vaccel compare PIPELINE -m ...` measures how far a clip is from the full model's"
        )
    if not trace.predicted:
        yield "nothing predicted how far this is from the full model: `vaccel compare PIPELINE -m ...` measures it"


def _above(value: Any) -> str:
    """A threshold a little above a value, in two digits."""
    if not value > 0:
        return "0.001"
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value * 1.1 / scale) * scale:.2g}"
