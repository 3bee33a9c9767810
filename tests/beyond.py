"""Models beyond one tensor and one transformer: made artifacts, plain loops, and forwards that are forecast by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracle_forecast as oracle
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from forecast_loops import distance
from test_oracle import TOLERANCE
from torch import Tensor, nn

import vaccel
from vaccel.methods.recording import Recorded, Recording
from vaccel.models import fingerprints
from vaccel.planning import artifacts
from vaccel.planning.calibration import sample_of

#: (number of the tensor, known steps, their velocities, the step) -> its velocity
Rule = Callable[[int, tuple[int, ...], list[Tensor], int], Tensor]


def record(pipe: Any, run: Callable[[], Any], path: Path | None = None) -> Recorded:
    """What a run in full records, and its artifact in ``path``."""
    with vaccel.accelerate(pipe, Recording()) as handle:
        run()
        recorded = handle.trace.delivered
    if path is not None:
        _, sample = sample_of(*recorded, bands=1)
        header = fingerprints.header("forecast", pipe, {}, num_steps=len(recorded.velocities), bands=1)
        sample |= {"forwards": 1, "done": True}
        artifacts.write(path, {**header, "prompts": "", "samples": {"run-0": sample}})
    return recorded


@contextlib.contextmanager
def forecast_by_hand(
    modules: Sequence[nn.Module], calls: int, path: Sequence[int], rule: Rule, order: int = 2
) -> Iterator[list[int]]:
    """Within the context the modules' forwards answer with forecasts at all steps but those of ``path``.

    Their outputs are velocities, in a tuple.  Steps are told apart by counting: a step has ``calls`` forwards of
    whichever module.  Of each call the outputs are remembered by themselves.  Gives the computed steps of each forward.
    """
    past: dict[int, dict[int, tuple[Tensor, ...]]] = {n: {} for n in range(calls)}
    count, computed = 0, []

    def replaced(real: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            (step, number), count = divmod(count, calls), count + 1
            if step in path:
                computed.append(step)
                answer = past[number][step] = real(*args, **kwargs)
                return answer
            known = oracle.known_after(list(past[number]), order)
            some = [past[number][f] for f in known]
            return tuple(rule(k, known, [answer[k] for answer in some], step) for k in range(len(some[0])))

        return forward

    for module in modules:
        module.forward = replaced(module.forward)
    try:
        yield computed
    finally:
        for module in modules:
            del module.forward


def weighed(velocities: Sequence[Tensor], weights: Any, axis: int) -> Tensor:
    """Velocities, newest first, with weights [K, C] by the channels along ``axis``."""
    shape = [1] * velocities[0].ndim
    shape[axis] = -1
    return sum(v * torch.as_tensor(w, dtype=v.dtype).reshape(shape) for v, w in zip(velocities, weights, strict=True))


def loop(pipe, steps=12, **call):
    """What the oracle needs of the pipeline's run: (latents, sigmas, branches of a step, its guidance scale)."""
    seen, where, hooks = [], [pipe.transformer, getattr(pipe, "transformer_2", None)], []
    for module in filter(None, where):
        hooks.append(module.register_forward_pre_hook(lambda m, a, k: seen.append((m, dict(k))), with_kwargs=True))
    tiny.latents(pipe, steps=steps, **call)
    for hook in hooks:
        hook.remove()
    texts = [given["encoder_hidden_states"] for _, given in seen[:2]]
    by_time = {float(given["timestep"].flatten()[0]): module for module, given in seen}
    timesteps, sigmas = pipe.scheduler.timesteps.clone(), pipe.scheduler.sigmas.double().tolist()

    def model(text):
        def evaluate(x, i):
            given = {"hidden_states": torch.from_numpy(x).float(), "timestep": timesteps[i].expand(1)}
            with torch.no_grad():
                made = by_time[float(timesteps[i])](**given, encoder_hidden_states=text, return_dict=False)
            return made[0].double().numpy()

        return evaluate

    return (
        seen[0][1]["hidden_states"].double().numpy(),
        sigmas,
        dict(zip(("cond", "uncond"), map(model, texts), strict=False)),
    )


def line(sigmas, damping=0.5):
    """The weights of a forecast without calibration, as the oracle takes them."""

    def weights(i, known):
        if len(known) < 2:
            return np.ones((1, 1))
        along = damping * (sigmas[i] - sigmas[known[0]]) / (sigmas[known[0]] - sigmas[known[1]])
        return np.array([[1 + along], [-along]])

    return weights


def close(made, expected):
    return distance(made, torch.from_numpy(expected)) < TOLERANCE


class Joint(nn.Module):
    """Denoises a picture [rows, 4, 3, 5] and sound, 9 tokens with 2 channels, which is fifty times as loud."""

    config = {"in_channels": 4}  # noqa: RUF012  as diffusers' models have one
    LOUD = 50.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mix, self.sound, self.both = nn.Linear(4, 4), nn.Linear(2, 2), nn.Linear(2, 4)

    def forward(self, latents: Tensor, timestep: Tensor, audio_latents: Tensor) -> tuple[Tensor, Tensor]:
        s = float(timestep.flatten()[0]) / 1000
        heard = self.both(audio_latents.mean(dim=1) / self.LOUD)[..., None, None]
        picture = torch.sin(self.mix(latents.movedim(1, -1)).movedim(-1, 1) * (1 + 2 * s) + heard)
        sound = self.LOUD * torch.cos(self.sound(audio_latents / self.LOUD) * (2 - s) + 3 * s)
        return picture, sound


class JointPipeline:
    """A loop around that; vaccel has never seen it."""

    def __init__(self, *, second: bool = False) -> None:
        self.net, self.scheduler = Joint(), FlowMatchEulerDiscreteScheduler(shift=2.0)
        if second:  # which takes over in the middle
            self.net_2 = Joint()

    @torch.no_grad()
    def __call__(self, steps: int = 9) -> tuple[Tensor, Tensor]:
        picture, sound = self.noise()
        self.scheduler.set_timesteps(steps)
        sigmas = self.scheduler.sigmas
        for i, t in enumerate(self.scheduler.timesteps):
            net = self.net_2 if hasattr(self, "net_2") and 2 * i >= steps else self.net
            v, u = net(latents=picture, timestep=t, audio_latents=sound)
            picture, sound = (x + (sigmas[i + 1] - sigmas[i]) * each for x, each in ((picture, v), (sound, u)))
        return picture, sound

    def noise(self) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(7)
        return torch.randn(2, 4, 3, 5, generator=draw), Joint.LOUD * torch.randn(2, 9, 2, generator=draw)
