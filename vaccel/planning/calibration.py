"""What a Forecast calibration knows: its samples' inner products together, how errors grow, what they look like."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..actions import Weights
from . import artifacts, gram
from .flow import Flow
from .gram import MAX_GAP, Gram, Plan

#: [T + 1][T] (``vaccel.flow.Flow.response``).
Response = tuple[tuple[float, ...], ...]
METHOD = "forecast"
#: What a path is planned for unless asked otherwise.
OBJECTIVE = "leximax"
#: By what a deviation of the latents has typically grown at the end, by the share of the run that is over when it
#: arises; for calibrations without replays.  Measured on the family that ships with the package (``bench/results``).
TYPICAL_GAIN = ((0.04, 15.0), (0.08, 13.0), (0.12, 10.0), (0.16, 5.2), (0.2, 4.2), (0.26, 2.2), (0.36, 1.8),
                (0.52, 0.7), (0.76, 0.5), (1.0, 0.3))  # fmt: skip


class Calibration:
    """What a Forecast artifact says.

    Attributes:
        gram: the samples' inner products together.
        gains: [T], by what a deviation has typically grown at the end (``gains_between``).
        curve: [(predicted error, PSNR in dB)] of runs that were made to see; may be empty.
        data: the artifact as it is.
    """

    def __init__(self, data: dict[str, Any], seal: str = ""):
        self.data, self.seal = data, seal
        self.fitted = artifacts.fitted(data)
        samples = list(data["samples"].values())
        levels = tuple(samples[0]["levels"])
        bands, channels, steps = data["bands"], samples[0]["channels"], len(levels) - 1
        kept = [data["products"]] if "products" in data else []
        kept += [s["products"] for s in samples if "products" in s]  # not added up yet
        products = unpacked(added(kept), (bands, channels, steps, steps)) / len(samples)
        self.gram = Gram(levels, products, samples[0]["elements"])
        self.gains = gains_between([s["gains"] for s in samples], steps)
        self.curve = sorted(
            (predicted, psnr) for s in samples for predicted, psnr in s.get("trials", ()) if math.isfinite(psnr)
        )
        for name in ("plans", "weights", "left", "error", "given"):  # each worked out once
            setattr(self, name, functools.lru_cache(maxsize=4096)(getattr(self, name)))

    def plans(
        self, objective: str = OBJECTIVE, order: int = 2, per: str = "channel", gain: bool = True,
        max_gap: int = MAX_GAP,
    ) -> dict[int, Plan]:  # fmt: skip
        """The best path of every budget (``vaccel.gram.plans``), by what errors do at the end or, without ``gain``, at
        the end of their stretch; the errors it states are those at the end."""
        gains = self.gains if gain else [1.0] * self.gram.num_steps
        found = gram.plans(self.gram, gains, order=order, max_gap=max_gap, per=per, objective=objective)
        return found if gain else {b: self._at_the_end(plan.full_steps, order, per) for b, plan in found.items()}

    def _at_the_end(self, path: tuple[int, ...], order: int, per: str) -> Plan:
        known = [path[max(0, k - order) : k][::-1] for k in range(len(path))]
        return Plan(path, tuple(self.error(known[k], path[k], per) for k in range(1, len(path))))

    def weights(self, known: tuple[int, ...], step: int, per: str = "channel") -> Weights:
        """By which the known velocities forecast ``step``'s."""
        return Weights(self.gram.weights(known, step, per))

    def left(self, known: tuple[int, ...], step: int, per: str) -> float:
        """What that forecast is off by (root mean square)."""
        return self.gram.left(known, step, per)

    def error(self, known: tuple[int, ...], end: int, per: str) -> float:
        """What is off at the end of the run when all between known[0] and ``end`` is skipped; ``end`` may be T."""
        gains = [*self.gains, 1.0]  # behind the last step nothing grows
        return gains[end] * self.gram.deviation(known, end, per)

    def given(
        self, path: tuple[int, ...], response: Response, order: int = 2, per: str = "channel"
    ) -> dict[int, Weights]:
        """What a solver of this response is given along a path where that is not what the model says, by step."""
        found = gram.outputs(self.gram, path, response, order=order, per=per)
        return {step: Weights(values) for step, values in found.items()}

    def psnr(self, error: float) -> tuple[float, float] | None:
        """(PSNR in dB to expect of finished clips, what five prompts in six reach); None where no run was made to see.

        A line through what was seen; and by split conformal prediction, the (n + 1) / 6 th smallest of how far n runs
        were from it, the worst where there are fewer than five.
        """
        if len(self.curve) < 3:
            return None
        x, y = np.array([[-20 * math.log10(e), p] for e, p in self.curve]).T
        slope, offset = np.polyfit(x, y, 1) if np.ptp(x) > 1 else (1.0, float(np.mean(y - x)))
        off = np.sort(y - (slope * x + offset))
        expected = float(slope * -20 * math.log10(max(error, 1e-12)) + offset)
        return expected, expected + float(off[max((len(off) + 1) // 6 - 1, 0)])


def calibration(path: str | Path) -> Calibration:
    """A Forecast artifact, read once for every version of the file.  Raises as ``artifacts.read`` does."""
    path = Path(path).resolve()
    return _calibration(path, path.stat().st_mtime_ns, path.stat().st_size)


@functools.lru_cache(maxsize=8)
def _calibration(path: Path, modified: int, size: int) -> Calibration:
    return Calibration(*artifacts.read_sealed(path, METHOD))


def sample_of(velocities: torch.Tensor, flow: Flow, channel_axis: int, bands: int) -> tuple[Gram, dict[str, Any]]:
    """What is kept of a run's guided velocities [T, B, ...]: their inner products, and those as an artifact has them.

    Raises ``ValueError`` for velocities that are not finite.
    """
    if not bool(torch.isfinite(velocities).all()):
        raise ValueError("this run's outputs are not finite: nothing is learnt from it")
    products = gram.inner_products(velocities, channel_axis, bands)
    found = Gram(flow.levels, products, velocities[0, 0].numel())
    data = {"levels": list(flow.levels), "channels": products.shape[1], "bands": bands, "elements": found.elements}
    return found, {**data, "products": packed(products), "gains": {}}


def packed(products: np.ndarray) -> str:
    """Symmetric matrices [..., T, T] as an artifact keeps them."""
    rows, columns = np.triu_indices(products.shape[-1])
    return artifacts.pack(products[..., rows, columns])


def added(texts: Iterable[str]) -> str:
    """The sum of what ``packed`` wrote, in this order."""
    return artifacts.pack(sum(artifacts.unpack(text) for text in texts))


def unpacked(text: str, shape: Sequence[int]) -> np.ndarray:
    """What ``packed`` was given, of this shape."""
    rows, columns = np.triu_indices(shape[-1])
    out = np.empty(shape)
    out[..., rows, columns] = artifacts.unpack(text).reshape(*shape[:-2], -1)
    out[..., columns, rows] = out[..., rows, columns]
    return out


def gains_between(measured: list[dict[str, float]], steps: int) -> list[float]:
    """[T] from every sample's gains by step: their geometric means, geometrically interpolated between steps.

    What arises earlier has longer to grow, and single measurements scatter by more than neighbouring steps differ: the
    means are the nearest ones that never rise (``_falling``).
    """
    if names := sorted({int(j) for sample in measured for j in sample}):
        logs = _falling([[math.log(max(s[str(j)], 1e-6)) for s in measured if str(j) in s] for j in names])
    else:
        names, logs = zip(*((share * steps, math.log(gain)) for share, gain in TYPICAL_GAIN), strict=True)
    return np.exp(np.interp(np.arange(steps), names, logs)).tolist()


def _falling(groups: Iterable[Sequence[float]]) -> list[float]:
    """Isotonic regression by pooling adjacent violators: every group's mean, groups joined as long as means rise."""
    pools: list[tuple[int, list[float]]] = []  # of how many groups, and their values
    for values in groups:
        count, values = 1, list(values)
        while pools and np.mean(pools[-1][1]) < np.mean(values):
            before, others = pools.pop()
            count, values = before + count, others + values
        pools.append((count, values))
    return [float(np.mean(values)) for count, values in pools for _ in range(count)]
