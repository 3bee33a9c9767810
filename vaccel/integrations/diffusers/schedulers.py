"""What a scheduler's prediction says about x_0, and of its path as a flow."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import torch

from ...models.channel_axis import config_of
from ...planning import flow
from ...planning.flow import Flow
from ...planning.levels import check_falling

#: Settings by which a scheduler places its noise levels by itself.
OWN_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def _kind(scheduler: Any) -> str | None:
    """What the scheduler takes a prediction for; None where it does not say."""
    config = config_of(scheduler)
    if config.get("use_flow_sigmas", False):
        return "flow_prediction"
    said = config.get("prediction_type")
    if said is not None or hasattr(scheduler, "precondition_inputs"):
        return said if not hasattr(scheduler, "precondition_inputs") else None
    sigmas = getattr(scheduler, "sigmas", None)  # those of a flow are the levels themselves
    return "flow_prediction" if sigmas is not None and len(sigmas) and float(sigmas[0]) <= 1 else None


def _inverted(scheduler: Any) -> bool:
    """Whether its sigmas are shares of the sample and not of the noise, and velocities point the other way (Mochi)."""
    return bool(config_of(scheduler).get("invert_sigmas", False))


def _alpha_sigma(scheduler: Any, begin: int = 0) -> list[tuple[float, float]] | None:
    """(alpha, sigma) of the latents that the model is given at every step; None where the scheduler does not say.

    From the cumulative alphas at its timesteps, or, where those are none of the training's (Karras), from its sigmas,
    which are the ratio of both.
    """
    sigmas, timesteps = getattr(scheduler, "sigmas", None), torch.as_tensor(scheduler.timesteps)
    own = any(config_of(scheduler).get(name, False) for name in OWN_SIGMAS)
    own = own or bool((timesteps != timesteps.long()).any())
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    fits = sigmas is not None and len(sigmas) in (len(timesteps), len(timesteps) + 1)
    if fits and (own or cumulative is None):
        ratios = torch.as_tensor(sigmas).double().cpu()[begin : len(timesteps)].tolist()
        return [(1 / (1 + r * r) ** 0.5, r / (1 + r * r) ** 0.5) for r in ratios]
    if cumulative is None:
        return None
    chosen = cumulative.double().cpu()[timesteps[begin:].long().cpu()]
    return [(a**0.5, (1 - a) ** 0.5) for a in chosen.tolist()]


def denoised(scheduler: Any, prediction: torch.Tensor, x: torch.Tensor, index: int) -> torch.Tensor:
    """The estimate of x_0 that ``prediction`` stands for at ``scheduler.timesteps[index]``; shapes [B, ...].

    Flow matching: x - sigma v, or x + (1 - sigma) v where sigmas are inverted.  Diffusion: from alpha and sigma, for
    predictions of noise, v or the sample.
    Raises ``ValueError`` for a prediction type or a scheduler that it does not know.
    """
    kind = _kind(scheduler)
    if kind == "flow_prediction":
        sigma = scheduler.sigmas[index].to(x.device, x.dtype)
        return x + (1 - sigma) * prediction if _inverted(scheduler) else x - sigma * prediction
    pairs = _alpha_sigma(scheduler, index)
    if not pairs or kind not in ("v_prediction", "epsilon", "sample"):
        raise ValueError(f"no x_0 estimate for prediction_type {kind!r} of a {type(scheduler).__name__}")
    alpha, sigma = pairs[0]
    if kind == "v_prediction":
        return alpha * x - sigma * prediction
    return (x - sigma * prediction) / alpha if kind == "epsilon" else prediction


def flow_of(scheduler: Any, begin: int = 0) -> Flow | None:
    """The run from ``scheduler.timesteps[begin]`` on as a flow; None for a scheduler whose noise levels are unknown, or
    do not fall.

    Raises ``ValueError`` for a prediction type that says nothing of a velocity.
    """
    found = _flow_of(scheduler, begin)
    if found is not None:
        try:
            check_falling(found.levels, "noise levels")
        except ValueError:
            return None
    return found


def _flow_of(scheduler: Any, begin: int) -> Flow | None:
    kind = _kind(scheduler)
    if kind is None:
        return None
    if kind == "flow_prediction":
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is None:
            return None
        sigmas = [float(s) for s in sigmas[begin : len(scheduler.timesteps) + 1]]
        if _inverted(scheduler):
            return Flow(tuple(1 - s for s in sigmas), ((-1.0, 0.0),) * (len(sigmas) - 1))
        return Flow(tuple(sigmas))
    pairs = _alpha_sigma(scheduler, begin)
    if pairs is None:
        return None
    levels = (*(flow.level(a, s) for a, s in pairs), 0.0)
    return Flow(levels, tuple(flow.scales(kind, a, s) for a, s in pairs))


@torch.no_grad()
def with_response(flow: Flow, scheduler: Any, begin: int = 0) -> Flow:
    """The same flow with the solver's response: a copy of the scheduler is given unit velocities, one at a time.

    Solvers are linear in what the model says, whatever their order and history, so this is exact for any.  One that
    cannot be run like this (it draws noise, or wants more than its step's arguments) leaves the response out.  What it
    draws comes from a generator of its own, and the user's are left as they were.
    """
    before = torch.get_rng_state()
    try:
        return _probed(flow, scheduler, begin)
    finally:
        if not torch.equal(torch.get_rng_state(), before):
            torch.set_rng_state(before)


def _probed(flow: Flow, scheduler: Any, begin: int) -> Flow:
    """Noise that a solver draws is the same with and without velocities, and goes out of the difference."""
    units, nothing = torch.eye(flow.num_steps, dtype=torch.float64), torch.zeros(flow.num_steps, flow.num_steps)
    try:
        rows = _rows(flow, scheduler, begin, units) - _rows(flow, scheduler, begin, nothing.double())
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return flow
    causal = bool((rows.triu() == 0).all())
    # A velocity that its own step shows nothing of was clipped: then the solver is not linear.
    heard = bool((rows.diagonal(-1) != 0).all())
    if not causal or not heard or not bool(torch.isfinite(rows).all()):
        return flow
    return dataclasses.replace(flow, response=tuple(map(tuple, rows.tolist())))


def _rows(flow: Flow, scheduler: Any, begin: int, velocities: torch.Tensor) -> torch.Tensor:
    """[T + 1, T]: the latents that enter every step, at last those that are finished, of T runs at once.

    Args:
        velocities: [T, T], of step i in run k.
    """
    copied, steps = copy.deepcopy(scheduler), flow.num_steps
    takes_generator = "generator" in inspect.signature(copied.step).parameters
    own = {"generator": torch.Generator().manual_seed(0)} if takes_generator else {}
    x, rows = torch.zeros(steps, 1, dtype=torch.float64), []
    for i, t in enumerate(scheduler.timesteps[begin:]):
        rows.append(x[:, 0])
        given = copied.scale_model_input(x, t) if hasattr(copied, "scale_model_input") else x
        velocity = velocities[i][:, None]
        if flow.scales is not None:
            of_prediction, of_x = flow.scales[i]
            velocity = (velocity - of_x * given) / of_prediction
        x = copied.step(velocity.cpu(), t, x, return_dict=False, **own)[0].double().cpu()
    return torch.stack([*rows, x[:, 0]])
