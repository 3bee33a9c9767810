"""Calibrations of loops that call a ``Denoiser``: every run of it in full becomes a sample."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ..denoiser import Denoiser
from ..engine.trace import Trace
from ..methods import Forecast, Recording
from ..models import fingerprints
from ..planning import artifacts
from ..planning.calibration import calibration, sample_of


@contextlib.contextmanager
def record(denoiser: Denoiser, path: str | Path, *, channel_axis: int | None = None) -> Iterator[None]:
    """Within the context every run of ``denoiser`` is computed in full, and its velocities' products go to ``path``.

        denoiser = vaccel.Denoiser(model, method=vaccel.Forecast.prior(17), guidance=5.0)
        with vaccel.calibrate.record(denoiser, "forecast.json"):
            for prompt in prompts:
                sample(denoiser, prompt)  # your loop: denoiser.run(50, flow=...), run.step(...)
        denoiser.method = vaccel.Forecast.load("forecast.json", budget=17)

    The artifact is that of ``vaccel calibrate forecast``, with other models' error growth and no trial runs.  A file
    that is there gains the new samples.  A run that is aborted, or whose latents change their shape, is no sample.

    Args:
        channel_axis: of the latents: each channel has weights of its own.  By default, and at any rate, the runs'
            (``Denoiser(channel_axis=...)``).

    Raises ``ValueError`` where the file holds a calibration of something else or of another number of steps, and for
    outputs that are not finite; the loop itself is not disturbed before its run is over.
    """
    if channel_axis is not None:
        denoiser.channels_along(channel_axis)
    before, denoiser.method = denoiser.method, Recording()
    denoiser.finished = lambda trace: _add(denoiser, Path(path), trace)
    try:
        yield
    finally:
        denoiser.method, denoiser.finished = before, None


def _add(denoiser: Denoiser, path: Path, trace: Trace) -> None:
    """Adds a finished run to the artifact."""
    recorded, trace.delivered = trace.delivered, None
    if recorded is None:  # its trace says why
        return
    steps = recorded.flow.num_steps
    if path.is_file() and (known := calibration(path).gram.num_steps) != steps:
        raise ValueError(f"{path} has runs of {known} steps, this one has {steps}: record it into a file of its own")
    _, sample = sample_of(*recorded, bands=1)
    header = {
        "schema": artifacts.SCHEMA, "method": Forecast.id, "num_steps": steps, "bands": 1,
        "model": _described(denoiser._models[0]), "scheduler": {"class": "loop", "config": {}}, "call": {},
    }  # fmt: skip
    sample |= {"forwards": trace.calls["large"], "done": True}
    artifacts.write(path, {**header, "samples": {f"run-{secrets.token_hex(6)}": sample}})


def _described(model: Any) -> dict[str, str]:
    if isinstance(model, nn.Module) and hasattr(model, "config"):
        return fingerprints.of_model(model)
    return {"class": getattr(model, "__qualname__", type(model).__qualname__), "config": ""}
