"""Where the weights of a forecast come from: linear extrapolation, or a calibration."""

from __future__ import annotations

import functools

from ..actions import Weights
from .calibration import Calibration, Response
from .flow import Flow, damped


@functools.lru_cache(maxsize=4096)
def extrapolated(levels: tuple[float, ...], known: tuple[int, ...], step: int, damping: float) -> Weights:
    """The weights of a forecast without calibration (``vaccel.planning.flow.damped``); the same object every run."""
    return Weights.plain(*damped(levels, known, step, damping))


class ExtrapolatedWeights:
    """Weights without calibration: damped linear extrapolation in the noise level."""

    def __init__(self, flow: Flow, damping: float):
        self.flow, self.damping = flow, damping

    def set_path(self, path: tuple[int, ...], given: tuple[Weights | None, ...] = ()) -> None:
        """The weights do not depend on the path."""

    def correction(self, step: int) -> None:
        """None: corrections need a calibration."""

    def weights(self, known: tuple[int, ...], step: int) -> Weights:
        return extrapolated(self.flow.levels, known[:2], step, self.damping)

    own = weights


class CalibratedWeights:
    """A calibration's weights; those of the velocity that the solver receives where its response is known."""

    def __init__(self, known: Calibration, order: int, per: str, response: Response | None):
        self.known, self.order, self.per, self.response = known, order, per, response
        self.solver_weights: dict[int, Weights] = {}

    def set_path(self, path: tuple[int, ...], given: tuple[Weights | None, ...] = ()) -> None:
        """The run follows this path from now on, after steps that were ``given`` such weights, None as computed."""
        if self.response is not None:
            self.solver_weights = self.known.solver_weights(path, self.response, self.order, self.per, given)

    def correction(self, step: int) -> Weights | None:
        return self.solver_weights.get(step)

    def weights(self, known: tuple[int, ...], step: int) -> Weights:
        return self.solver_weights[step] if self.solver_weights else self.own(known, step)

    def own(self, known: tuple[int, ...], step: int) -> Weights:
        """The weights of a branch that was computed at other steps than the path's."""
        return self.known.weights(known, step, self.per)
