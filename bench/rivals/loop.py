"""A pipeline's own denoising loop, written out, in which a rival is asked at every step whether the model runs.

Where it does not, a rival's stand-in is a linear combination of what computed steps left behind: every method here is
one, whatever its formula.  What they left behind is one of five things (``WHATS``), of both guidance branches:

    output      what the model returns: velocity or noise
    hidden      what its last block returns; the rest of the model (norm and projection) is computed at every step
    residual    that less what enters the first block; the first layer is computed at every step, too
    difference  the output less the latents that the model is given
    velocity    u = eps - x_0 = a output + b x, in coordinates in which the sampler is a flow (``vaccel.planning.flow``)

With nothing skipped the result is the pipeline's own, bit for bit.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaccel.planning.flow import level, scales

WHATS = ("output", "hidden", "residual", "difference", "velocity")


class Rival(abc.ABC):
    """Stands in for the model at the steps that it does not have computed; one object a run.

    Attributes:
        what: one of ``WHATS``.
        grid: other times for the steps, as ``Denoiser.stepper`` takes them; None for the pipeline's own.
    """

    what: str = "output"
    grid: Tensor | None = None

    @abc.abstractmethod
    def computes(self, step: int, x: Tensor) -> bool:
        """Whether the model runs at this step, of the latents ``x`` that enter it; asked once a step, in order."""

    def observe(self, step: int, x: Tensor, output: Tensor, computed: bool) -> None:  # noqa: B027  most need none
        """The conditional branch's output at every step, computed or a stand-in."""

    @abc.abstractmethod
    def weights(self, known: Sequence[int], step: int) -> Sequence[float]:
        """The weights of the computed steps ``known``, ascending, in the stand-in for ``step``."""


@dataclasses.dataclass
class Scheduled(Rival):
    """A rival whose computed steps are known beforehand; ``formula(known, step)`` are its weights."""

    path: Sequence[int]
    formula: Callable[[Sequence[int], int], Sequence[float]]
    what: str = "output"
    grid: Tensor | None = None

    def computes(self, step: int, x: Tensor) -> bool:
        return step in self.path

    def weights(self, known: Sequence[int], step: int) -> Sequence[float]:
        return self.formula(known, step)


@dataclasses.dataclass
class Seen:
    """What the model returned: ``output``, ``hidden`` and ``stem`` (what enters the first block), [2, ...]."""

    output: Tensor
    hidden: Tensor
    stem: Tensor


class TooManyError(Exception):
    """More steps were computed than were asked for."""


class Denoiser:
    """A pipeline seen as a loop needs it.

    Attributes:
        levels: [T + 1] of the run as a flow, descending.
        scales: (a, b) of every step, u = a output + b x.
        cond: which of the two branches is the conditional one.
    """

    cond: int
    levels: list[float]
    scales: list[tuple[float, float]]

    def __init__(self, pipe: Any, call: dict[str, Any], steps: int):
        self.pipe, self.call, self.steps = pipe, call, steps
        self.guidance = call["guidance_scale"]
        self._texts: dict[str, Any] = {}
        self._caught: dict[str, Tensor] = {}

    def conditions(self, prompt: str) -> Any:
        """The prompt's embeddings, made once."""
        if prompt not in self._texts:
            with torch.no_grad():
                self._texts[prompt] = self._encode(prompt)
        return self._texts[prompt]

    def _catch(self, name: str) -> Callable:
        def keep(module: Any, args: Any, *returned: Any) -> None:
            self._caught[name] = returned[0] if returned else args[0]

        return keep

    def stepper(self, grid: Tensor | None = None) -> Stepper:
        """A fresh solver; with a ``grid`` [T + 1], descending, at other times than its own."""
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(self.steps)
        return Stepper(scheduler) if grid is None else self._moved(scheduler, grid)


class Stepper:
    """The pipeline's scheduler, called as the pipeline calls it."""

    def __init__(self, scheduler: Any):
        self.scheduler, self.times = scheduler, scheduler.timesteps

    def __call__(self, guided: Tensor, step: int, x: Tensor) -> Tensor:
        return self.scheduler.step(guided, self.times[step], x, return_dict=False)[0]


class WanDenoiser(Denoiser):
    """A ``WanPipeline``: two forwards a step, the conditional one first."""

    cond = 0

    def __init__(self, pipe: Any, call: dict[str, Any], steps: int):
        super().__init__(pipe, call, steps)
        model = pipe.transformer
        model.blocks[0].register_forward_pre_hook(self._catch("stem"))
        model.norm_out.register_forward_pre_hook(self._catch("hidden"))
        sigmas = self.stepper().scheduler.sigmas.double().tolist()
        self.levels, self.scales = sigmas, [(1.0, 0.0)] * steps

    def _encode(self, prompt: str) -> Any:
        return self.pipe.encode_prompt(
            prompt, None, True, max_sequence_length=self.call["max_sequence_length"], device=torch.device("cpu")
        )

    def noise(self, seed: int) -> Tensor:
        size = {k: self.call[k] for k in ("height", "width", "num_frames")}
        channels = self.pipe.transformer.config.in_channels
        generator = torch.Generator().manual_seed(seed)
        return self.pipe.prepare_latents(1, channels, **size, dtype=torch.float32, device="cpu", generator=generator)

    def full(self, x: Tensor, t: Tensor, texts: Any) -> Seen:
        rows = []
        for text in texts:
            out = self.pipe.transformer(x, t.expand(len(x)), encoder_hidden_states=text, return_dict=False)[0]
            rows.append((out, self._caught["hidden"], self._caught["stem"]))
        return Seen(*(torch.cat(parts) for parts in zip(*rows, strict=True)))

    def stem(self, x: Tensor) -> Tensor:
        return self.pipe.transformer.patch_embedding(x).flatten(2).transpose(1, 2)

    def head(self, hidden: Tensor, t: Tensor) -> Tensor:
        """The end of ``WanTransformer3DModel.forward``, for patches of one latent pixel."""
        model = self.pipe.transformer
        embedder = model.condition_embedder
        time = embedder.time_embedder(embedder.timesteps_proj(t.expand(1)).to(hidden.dtype))
        shift, scale = (model.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        out = model.proj_out(model.norm_out(hidden) * (1 + scale) + shift)
        frames, side = (self.call["num_frames"] - 1) // self.pipe.vae_scale_factor_temporal + 1, self.call
        height, width = (side[k] // self.pipe.vae_scale_factor_spatial for k in ("height", "width"))
        return out.reshape(len(out), frames, height, width, -1).permute(0, 4, 1, 2, 3)

    def _moved(self, scheduler: Any, grid: Tensor) -> Stepper:
        scheduler.sigmas, scheduler.timesteps = grid, 1000 * grid[:-1]
        scheduler.set_begin_index(0)
        return Stepper(scheduler)

    def grid(self) -> Tensor:
        return self.stepper().scheduler.sigmas.double()

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        shape = (1, vae.config.z_dim, 1, 1, 1)
        mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.dtype)
        std = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents.dtype)
        video = vae.decode(latents / std + mean, return_dict=False)[0]
        return self.pipe.video_processor.postprocess_video(video, output_type="pt")


class UNetDenoiser(Denoiser):
    """A ``StableDiffusionPipeline`` with DDIM: one forward a step, of the unconditional branch and the conditional one.

    The features of the papers' transformers have their counterpart where Spectrum's release for SDXL takes it: what
    enters ``conv_norm_out``.  What enters the first block is what ``conv_in`` returns.
    """

    cond = 1

    def __init__(self, pipe: Any, call: dict[str, Any], steps: int):
        super().__init__(pipe, call, steps)
        pipe.unet.conv_in.register_forward_hook(self._catch("stem"))
        pipe.unet.conv_norm_out.register_forward_pre_hook(self._catch("hidden"))
        products = torch.cat([_kept(pipe.scheduler, self.grid()[:-1]), pipe.scheduler.final_alpha_cumprod.reshape(1)])
        pairs = [(p**0.5, (1 - p) ** 0.5) for p in products.double().tolist()]
        self.levels = [level(*pair) for pair in pairs]
        self.scales = [scales("epsilon", *pair) for pair in pairs[:-1]]

    def _encode(self, prompt: str) -> Any:
        wanted, unwanted = self.pipe.encode_prompt(prompt, torch.device("cpu"), 1, True)
        return torch.cat([unwanted, wanted])

    def noise(self, seed: int) -> Tensor:
        sides, generator = (self.call["height"], self.call["width"]), torch.Generator().manual_seed(seed)
        return self.pipe.prepare_latents(1, self.pipe.unet.config.in_channels, *sides, torch.float32, "cpu", generator)

    def full(self, x: Tensor, t: Tensor, texts: Any) -> Seen:
        out = self.pipe.unet(torch.cat([x] * 2), t, encoder_hidden_states=texts, return_dict=False)[0]
        return Seen(out, self._caught["hidden"], self._caught["stem"])

    def stem(self, x: Tensor) -> Tensor:
        return self.pipe.unet.conv_in(x)

    def head(self, hidden: Tensor, t: Tensor) -> Tensor:
        unet = self.pipe.unet
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))

    def _moved(self, scheduler: Any, grid: Tensor) -> Stepper:
        return MovedDDIM(scheduler, grid)

    def grid(self) -> Tensor:
        """The run's timesteps, and 0: the last step of DDIM ends at the first of the training's levels."""
        return torch.cat([self.stepper().times.double(), torch.zeros(1, dtype=torch.float64)])

    def decode(self, latents: Tensor) -> Tensor:
        image = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(image, output_type="pt", do_denormalize=[True] * len(image))


def _kept(scheduler: Any, times: Tensor) -> Tensor:
    """The cumulated alpha at any timesteps: its logit is interpolated between whole ones."""
    logits = torch.logit(scheduler.alphas_cumprod.double())
    low = times.detach().floor().long().clamp(0, len(logits) - 2)
    return torch.sigmoid(torch.lerp(logits[low], logits[low + 1], times.double() - low))


class MovedDDIM(Stepper):
    """DDIM without noise (eta = 0), from any time to any other; the scheduler's own step knows even spacing alone."""

    def __init__(self, scheduler: Any, grid: Tensor):
        self.scheduler, self.times, self.kept = scheduler, grid[:-1].float(), _kept(scheduler, grid)

    def __call__(self, guided: Tensor, step: int, x: Tensor) -> Tensor:
        here, there = self.kept[step], self.kept[step + 1]
        clean = (x - (1 - here).sqrt().to(x) * guided) / here.sqrt().to(x)
        return there.sqrt().to(x) * clean + (1 - there).sqrt().to(x) * guided


@dataclasses.dataclass
class Recorded:
    """A full run: ``x`` [T, ...] that entered every step, ``seen`` at it."""

    x: list[Tensor] = dataclasses.field(default_factory=list)
    seen: list[Seen] = dataclasses.field(default_factory=list)


class Loop:
    """Runs a denoiser with a rival, or in full."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.steps = denoiser, denoiser.steps

    def run(
        self,
        prompt: str,
        seed: int,
        rival: Rival | None = None,
        *,
        limit: int | None = None,
        record: Recorded | None = None,
    ) -> tuple[Tensor, int]:
        """The finished latents, and how many steps were computed.

        Raises ``TooManyError`` when more than ``limit`` would be.
        """
        d = self.denoiser
        texts, x, solver = d.conditions(prompt), d.noise(seed), d.stepper(rival.grid if rival else None)
        known: dict[int, Tensor] = {}
        for step, t in enumerate(solver.times):
            if rival is None or rival.computes(step, x):
                if len(known) == limit:
                    raise TooManyError
                seen = d.full(x, t, texts)
                output = seen.output
                known[step] = self.kept(rival.what if rival else "output", seen, x, step)
                if record is not None:
                    record.x.append(x)
                    record.seen.append(seen)
            else:
                weights = rival.weights(list(known), step)
                pairs = [(w, q) for w, q in zip(weights, known.values(), strict=True) if w]
                value = sum((w * q for w, q in pairs[1:]), pairs[0][0] * pairs[0][1])
                output = self.output(rival.what, value, x, step, t)
            if rival is not None:
                rival.observe(step, x, output[d.cond : d.cond + 1], step in known)
            wanted, unwanted = output[d.cond : d.cond + 1], output[1 - d.cond : 2 - d.cond]
            x = solver(unwanted + d.guidance * (wanted - unwanted), step, x)
        return x, len(known)

    def kept(self, what: str, seen: Seen, x: Tensor, step: int) -> Tensor:
        """What a computed step leaves behind."""
        if what == "hidden":
            return seen.hidden
        if what == "residual":
            return seen.hidden - seen.stem
        if what == "difference":
            return seen.output - x
        a, b = self.denoiser.scales[step] if what == "velocity" else (1, 0)
        return a * seen.output + b * x if what == "velocity" else seen.output

    def output(self, what: str, value: Tensor, x: Tensor, step: int, t: Tensor) -> Tensor:
        """The model's output of a stand-in."""
        if what == "hidden":
            return self.denoiser.head(value, t)
        if what == "residual":
            return self.denoiser.head(self.denoiser.stem(x) + value, t)
        if what == "difference":
            return x + value
        if what == "velocity":
            a, b = self.denoiser.scales[step]
            return (value - b * x) / a
        return value


def recorded(loop: Loop, prompts: Sequence[str], first_seed: int) -> list[Recorded]:
    """Full runs of some prompts, to calibrate on."""
    runs = []
    with torch.no_grad():
        for n, prompt in enumerate(prompts):
            runs.append(Recorded())
            loop.run(prompt, first_seed + n, record=runs[-1])
    return runs


def features(loop: Loop, run: Recorded, what: str) -> Tensor:
    """What every step of a full run left behind, both branches in a row: [T, n]."""
    steps = zip(run.seen, run.x, strict=True)
    return torch.stack([loop.kept(what, seen, x, i).flatten() for i, (seen, x) in enumerate(steps)])


def gram(loop: Loop, runs: Sequence[Recorded], what: str) -> np.ndarray:
    """The sum over runs of F F^T, [T, T], for features F [T, n]."""
    total = 0
    for run in runs:
        rows = features(loop, run, what).double()
        total = total + rows @ rows.T
    return total.numpy()
