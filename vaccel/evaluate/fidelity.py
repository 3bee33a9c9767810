"""Which metrics a comparison measures, and how they are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from . import metrics, perceptual, vmaf
from .clips import is_sound

#: Equal outputs have infinite PSNR or SNR; in means they count as this many dB.
EQUAL = 100.0


@dataclasses.dataclass(frozen=True)
class Metric:
    """One way to compare an output with the full model's.

    ``name`` is its field in ``rows.jsonl``, ``head`` that of its column; ``about`` is a sentence for who has never met
    it.  ``measure(reference, output, fps)`` is None where the metric does not apply, ``missing()`` says why it cannot
    be measured here.  ``higher``: whether closer is higher; ``worst``: whether the worst output stands beside the mean.
    """

    name: str
    head: str
    about: str
    measure: Callable[[np.ndarray, np.ndarray, float], float | None]
    sound: bool = False
    missing: Callable[[], str] = lambda: ""
    higher: bool = True
    worst: bool = True
    digits: int = 1

    def of_rows(self, values: list[float]) -> tuple[float, float]:
        """(mean, worst) of some outputs."""
        capped = [min(value, EQUAL) for value in values] if self.name in YARDSTICKS else values
        return float(np.mean(capped)), float(min(capped) if self.higher else max(capped))

    def text(self, value: float | None) -> str:
        """A value as it is shown."""
        if value is None:
            return "-"
        return "equal" if self.name in YARDSTICKS and value >= EQUAL else f"{value:.{self.digits}f}"

    def of_summary(self, entry: dict[str, Any]) -> str:
        """A contender's mean, and in brackets its worst."""
        mean, worst = self.text(entry[self.name]), self.text(entry[f"{self.name}_worst"])
        return f"{mean} ({worst})" if self.worst and mean not in ("-", "equal") else mean


#: What is always measured, of clips and of sounds: the plots' axis.
YARDSTICKS = ("psnr", "snr")
METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR dB", "peak signal-to-noise ratio", lambda a, b, fps: metrics.psnr(a, b)),
        Metric("snr", "SNR dB", "signal-to-noise ratio of sounds", lambda a, b, fps: metrics.snr(a, b), sound=True),
        Metric("ssim", "SSIM", "structural similarity, 1 for equal clips", lambda a, b, fps: metrics.ssim(a, b),
               worst=False, digits=3),
        Metric("lpips", "LPIPS", "distance of AlexNet's features, 0 for equal clips",
               lambda a, b, fps: perceptual.lpips(a, b), missing=lambda: perceptual.lpips_missing(), higher=False,
               worst=False, digits=3),
        Metric("vmaf", "VMAF", "97.4 (where nothing moves) to 100 for equal clips; 6 less is one just-noticeable "
               "difference; small clips enlarged", lambda a, b, fps: vmaf.vmaf(a, b, fps),
               missing=lambda: vmaf.vmaf_missing()),
        Metric("flicker", "flicker", "root mean square of the error's change from frame to frame, in 8-bit code "
               "values, 0 where the error stands still", lambda a, b, fps: metrics.flicker(a, b), higher=False,
               digits=2),
        Metric("cvvdp", "JOD", "ColorVideoVDP on a Full HD monitor: 10 less just-objectionable differences",
               lambda a, b, fps: perceptual.cvvdp(a, b, fps), missing=lambda: perceptual.cvvdp_missing(), digits=2),
    )
}  # fmt: skip


def chosen(names: Iterable[str] | None = None) -> list[Metric]:
    """The metrics of these names, by default all that can be measured here; always the PSNR of clips and SNR of sounds.

    Raises ``ValueError`` for an unknown name, or a metric that cannot be measured here.
    """
    if names is None:
        return [metric for metric in METRICS.values() if not metric.missing()]
    named = [name.strip().lower() for name in names]
    if unknown := [name for name in named if name not in METRICS]:
        raise ValueError(f"unknown metric {unknown[0]!r}; known: {', '.join(METRICS)}")
    for name in named:
        if why := METRICS[name].missing():
            here = ", ".join(metric.name for metric in chosen())
            raise ValueError(f"{name} cannot be measured here: {why}. What can: {here}")
    return [metric for metric in METRICS.values() if metric.name in {*YARDSTICKS, *named}]


def beside(names: Iterable[str], fps: float = 12) -> dict[str, Callable[[np.ndarray, np.ndarray], float | None]]:
    """Metrics by these names, without the yardsticks, as calibrations take them.  Raises as ``chosen`` does."""
    names = list(names)
    return {
        metric.name: lambda full, made, measure=metric.measure: measure(full, made, fps)
        for metric in (chosen(names) if names else ())
        if metric.name not in YARDSTICKS
    }


def decibels(reference: np.ndarray, output: np.ndarray) -> tuple[str, float]:
    """The yardstick's name and its value: PSNR of clips, SNR of sounds."""
    name = "snr" if is_sound(reference) else "psnr"
    return name, METRICS[name].measure(reference, output, 0)
