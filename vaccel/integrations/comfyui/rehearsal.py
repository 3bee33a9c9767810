"""At which noise levels a sampler will ask its model, and what it makes of the answers: tried before the run.

A list of sigmas says neither: Heun's method asks twice a step, others in between.  So the sampler itself is run on
latents of one element, with a model that costs nothing, and its calls are written down.  It draws its noise from a
random stream that is put back afterwards.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...capture import random_as_it_was
from .levels import normaliser

#: Of longer runs the response is not asked for: it is [T + 1][T].
MOST = 400
#: Velocities of a run are compared with rounding in this.
ROUNDING = 1e-9

Response = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What a sampler does.

    Attributes:
        sigmas: of every call of the model, in order.
        stochastic: whether it adds noise of its own.
        response: as in ``vaccel.planning.flow.Flow``; None where it is not linear or was not asked for.
        tried: False for what is only assumed of it.
    """

    sigmas: tuple[float, ...]
    stochastic: bool = False
    response: Response | None = None
    tried: bool = True


class _Model:
    """Stands in for the model that a sampler is given: its velocity is what ``velocity`` says at each call."""

    def __init__(self, guider: Any, velocity: Callable[[int], torch.Tensor | float]):
        self.inner_model, self.velocity = guider, velocity
        self.sampling = guider.inner_model.model_sampling
        self.sigmas: list[float] = []
        self.entered: list[torch.Tensor] = []
        self.latent_image = self.noise = None

    def normalised(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return x.detach().double() / normaliser(self.sampling, sigma)[0]

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **given: Any) -> torch.Tensor:
        at = float(sigma.flatten()[0])
        here, level = self.normalised(x, at), normaliser(self.sampling, at)[1]
        denoised = (here - level * self.velocity(len(self.sigmas))).to(x.dtype)
        self.sigmas.append(at)
        self.entered.append(here.flatten())
        return self._guided(denoised, x, sigma, given.get("model_options") or {})

    def _guided(self, denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor, options: dict) -> torch.Tensor:
        """Some samplers look at the unguided answer through a function that they hang into the options."""
        for function in options.get("sampler_post_cfg_function", ()):
            denoised = function({
                "denoised": denoised, "cond_denoised": denoised, "uncond_denoised": denoised, "cond": None,
                "uncond": None, "cond_scale": 1.0, "sigma": sigma, "input": x, "model_options": options,
                "model": self.inner_model.inner_model,
            })  # fmt: skip
        return denoised


def rehearsed(sampler: Any, sigmas: torch.Tensor, guider: Any, seed: int | None) -> Rehearsal | None:
    """What ``sampler`` will do along ``sigmas`` [T + 1]; None where it cannot be tried or chooses its own steps."""
    function = getattr(sampler, "sampler_function", None)
    if function is None or not _plain(getattr(sampler, "extra_options", {})):
        return None
    try:
        first, end = _run(sampler, sigmas, guider, seed, 1, lambda call: 0.0)
        again, _ = _run(sampler, sigmas, guider, seed, 1, lambda call: 1.0)
        if not first.sigmas or not _same(first.sigmas, again.sigmas):
            return None  # how it goes on depends on what the model says
        found = Rehearsal(tuple(first.sigmas), any(bool(x.any()) for x in (*first.entered, end)))
        if found.stochastic or len(found.sigmas) > MOST:
            return found
        return dataclasses.replace(found, response=_response(sampler, sigmas, guider, seed, len(found.sigmas)))
    except Exception:  # somebody's sampler, run as nobody meant it to be: whatever it raises, it cannot be tried
        return None


def _plain(options: Any) -> bool:
    """Whether nothing in a sampler's options has a state that trying it would change, or is too large to copy."""
    if isinstance(options, dict):
        return all(map(_plain, options.values()))
    if isinstance(options, (list, tuple)):
        return all(map(_plain, options))
    return options is None or isinstance(options, (bool, int, float, str))


def _run(
    sampler: Any, sigmas: torch.Tensor, guider: Any, seed: int | None, rows: int,
    velocity: Callable[[int], torch.Tensor | float],
) -> tuple[_Model, torch.Tensor]:  # fmt: skip
    """The model that was asked, and the finished latents [rows], both in straight coordinates."""
    model, at = _Model(guider, velocity), sigmas.detach().cpu()
    options = copy.deepcopy(getattr(sampler, "extra_options", {}))
    given = {"model_options": {"transformer_options": {"sample_sigmas": at}}, "seed": seed, "denoise_mask": None}
    with random_as_it_was(), torch.no_grad():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed every GPU's stream too
        start = torch.zeros(rows, 1, 1, 1, dtype=torch.float64)
        model.latent_image, model.noise = start.clone(), start.clone()
        x = sampler.sampler_function(model, start, at, extra_args=given, callback=None, disable=True, **options)
    return model, model.normalised(x, float(at[-1])).flatten()


def _response(sampler: Any, sigmas: torch.Tensor, guider: Any, seed: int | None, calls: int) -> Response | None:
    """Unit velocities, one call each, in the rows of one run: solvers are linear in what the model says."""
    units = torch.eye(calls, dtype=torch.float64)
    model, end = _run(sampler, sigmas, guider, seed, calls, lambda call: units[min(call, calls - 1)].view(-1, 1, 1, 1))
    if len(model.entered) != calls:
        return None
    rows = torch.stack([*model.entered, end])
    causal = bool((rows.triu().abs() <= ROUNDING).all())
    heard = bool((rows.diagonal(-1) != 0).all())
    if not causal or not heard or not bool(torch.isfinite(rows).all()):
        return None
    return tuple(map(tuple, rows.tril(-1).tolist()))


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= ROUNDING * max(1.0, abs(x)) for x, y in zip(a, b, strict=True))


def as_listed(sigmas: torch.Tensor) -> Rehearsal:
    """One call at every listed sigma but the last: what is assumed of a sampler that cannot be tried."""
    return Rehearsal(tuple(float(s) for s in sigmas.double().cpu()[:-1]), tried=False)
