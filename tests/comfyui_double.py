"""A double of the parts of ComfyUI that ``vaccel.integrations.comfyui`` works with.

ComfyUI is no package that could be installed for a test.  So what was read of it, at commit
a125cd84b054a57729b5eecab930ca9408719832 (version 0.3.64), is here once more in words of our own: how a guider samples,
how wrappers nest around it, how conditions become rows of a forward, what a network is told, and what becomes of its
answer.  What a list of latents is, as for video with sound, was read in later sources (``comfy/model_base.py`` at
094c74c1b7f9cd5cdd9015741e8eb26acff1142a and ``comfy/samplers.py`` at 311c01406130b2acbe8ab291043502de26cf3871).
The samplers are no double: they are those of k-diffusion, which ComfyUI's own come from.

What is left out: loading, hooks, control, several GPUs, context windows, latent formats.
"""

from __future__ import annotations

import copy
import math
import uuid
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from comfyui_levels import k_diffusion_sampling
from torch import nn

OUTER_SAMPLE, SAMPLER_SAMPLE, PREDICT_NOISE = "outer_sample", "sampler_sample", "predict_noise"
needs_k_diffusion = pytest.mark.skipif(
    not all(map(find_spec, ("k_diffusion", "torchsde", "torchdiffeq"))),
    reason="k-diffusion, torchsde or torchdiffeq is not installed: make test brings them",
)
CALC_COND_BATCH, APPLY_MODEL, DIFFUSION_MODEL = "calc_cond_batch", "apply_model", "diffusion_model"


# -- wrappers and options ---------------------------------------------------------------------------------------------


def nested_copy(options: dict) -> dict:
    """Dictionaries all the way down and the lists in them are new, everything else is shared."""
    made = {}
    for key, value in options.items():
        made[key] = nested_copy(value) if isinstance(value, dict) else list(value) if type(value) is list else value
    return made


def merged(into: dict, other: dict) -> dict:
    """``other`` laid over ``into``: dictionaries merge, lists are joined, the rest is replaced."""
    for key, value in other.items():
        if isinstance(value, dict):
            into[key] = merged(nested_copy(into.get(key, {})), value)
        elif isinstance(value, list):
            into[key] = [*into.get(key, []), *value]
        else:
            into[key] = value
    return into


def wrappers_in(options: dict, kind: str) -> list:
    """All wrappers of a kind in ``transformer_options``, in the order of their keys."""
    return [w for named in options.get("wrappers", {}).get(kind, {}).values() for w in named]


class Executor:
    """Calls wrappers from the outside in, at last what they wrap."""

    def __init__(self, original: Any, class_obj: Any, wrappers: list, depth: int = 0):
        self.original, self.class_obj, self.wrappers, self.depth = original, class_obj, list(wrappers), depth

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        if self.depth == len(self.wrappers):
            return self.original(*args, **kwargs)
        return self.wrappers[self.depth](self, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Executor(self.original, self.class_obj, self.wrappers, self.depth + 1).execute(*args, **kwargs)


class ModelPatcher:
    """A model and what a user has changed about it; clones share the model and nothing else."""

    def __init__(self, model: BaseModel):
        self.model, self.wrappers = model, {}
        self.model_options: dict = {"transformer_options": {}}

    def clone(self) -> ModelPatcher:
        made = ModelPatcher(self.model)
        made.model_options = copy.deepcopy(self.model_options)
        made.wrappers = {kind: {key: list(ws) for key, ws in named.items()} for kind, named in self.wrappers.items()}
        return made

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)

    def get_wrappers(self, kind: str, key: str) -> list:
        return self.wrappers.get(kind, {}).get(key, [])

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)


# -- the model --------------------------------------------------------------------------------------------------------


class BaseModel(nn.Module):
    """A network beside its levels: latents in, x_0 out."""

    def __init__(self, network: nn.Module, sampling: nn.Module):
        super().__init__()
        self.diffusion_model, self.model_sampling = network, sampling
        self.memory: int | None = None  # conditions that fit into one forward

    def apply_model(self, x: Any, t: torch.Tensor, transformer_options: dict, **conditions: Any) -> torch.Tensor:
        executor = Executor(self._apply_model, self, wrappers_in(transformer_options, APPLY_MODEL))
        return executor.execute(x, t, None, None, None, transformer_options, **conditions)

    def _apply_model(
        self, x: torch.Tensor, t: torch.Tensor, c_concat: Any, c_crossattn: Any, control: Any,
        transformer_options: dict, **conditions: Any,
    ) -> torch.Tensor:  # fmt: skip
        given = self.model_sampling.calculate_input(t, x)
        if conditions.get("concat") is not None:
            given = torch.cat([given, conditions.pop("concat")], 1)
        shapes = conditions.pop("latent_shapes", None)
        given = unpacked(given, shapes) if shapes else given
        timestep = self.model_sampling.timestep(t).float()
        context = conditions.pop("cross_attn", None)
        output = self.diffusion_model(
            given, timestep, context=context, control=control, transformer_options=transformer_options, **conditions
        )
        if not torch.is_tensor(output):
            output = packed(output)
        return self.model_sampling.calculate_denoised(t, output.float(), x)


class Network(nn.Module):
    """What ComfyUI's networks have in common: their forward is a chain of wrappers around ``_forward``."""

    def forward(self, x: Any, timestep: torch.Tensor, context: Any = None, control: Any = None,
                transformer_options: dict | None = None, **kwargs: Any) -> Any:  # fmt: skip
        options = transformer_options or {}
        executor = Executor(self._forward, self, wrappers_in(options, DIFFUSION_MODEL))
        return executor.execute(x, timestep, context, control, options, **kwargs)


def packed(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([p.reshape(len(p), 1, -1) for p in parts], -1)


def unpacked(x: torch.Tensor, shapes: list) -> list[torch.Tensor]:
    parts = x.split([math.prod(shape[1:]) for shape in shapes], -1)
    return [part.reshape(len(x), *shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


# -- sampling ---------------------------------------------------------------------------------------------------------


def condition(**model_conds: Any) -> dict:
    """One condition as a guider keeps it.  Others of its keys: area, mask, strength, start_percent, end_percent."""
    return {"model_conds": model_conds}


def _piece(cond: dict, x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor, list[slice]] | None:
    """(latents, their weight, where they are) of a condition now; None outside its range."""
    if sigma > cond.get("timestep_start", math.inf) or sigma < cond.get("timestep_end", -math.inf):
        return None
    place = [slice(None)] * x.ndim
    if "area" in cond:  # sizes, then offsets
        sizes, offsets = cond["area"][: x.ndim - 2], cond["area"][x.ndim - 2 :]
        place[2:] = [slice(o, o + s) for s, o in zip(sizes, offsets, strict=True)]
    part = x[tuple(place)]
    weight = torch.ones_like(part) * cond.get("strength", 1.0)
    if "mask" in cond:
        weight = weight * cond["mask"][tuple(place[2:])]
    return part, weight, place


def calc_cond_batch(model: BaseModel, conds: list, x: torch.Tensor, timestep: torch.Tensor, options: dict) -> list:
    wrappers = wrappers_in(options.get("transformer_options", {}), CALC_COND_BATCH)
    return Executor(_calc_cond_batch, None, wrappers).execute(model, conds, x, timestep, options)


def _calc_cond_batch(model: BaseModel, conds: list, x: torch.Tensor, timestep: torch.Tensor, options: dict) -> list:
    """x_0 of every list of conditions: those of equal shape in one forward, the last first, as far as memory goes."""
    sums, counts = [torch.zeros_like(x) for _ in conds], [torch.full_like(x, 1e-37) for _ in conds]
    waiting = []
    for number, listed in enumerate(conds):
        for cond in listed or ():
            piece = _piece(cond, x, float(timestep[0]))
            if piece is not None:
                waiting.append((number, cond, piece))
    while waiting:
        alike = [i for i, (_, cond, piece) in enumerate(waiting) if _fits(waiting[0], cond, piece)]
        chosen = alike[::-1][: model.memory]
        batch = [waiting.pop(i) for i in chosen]
        given = {key: torch.cat([c["model_conds"][key].expand(len(x), *c["model_conds"][key].shape[1:])
                                 if torch.is_tensor(c["model_conds"][key]) else c["model_conds"][key]
                                 for _, c, _ in batch]) if torch.is_tensor(batch[0][1]["model_conds"][key])
                 else batch[0][1]["model_conds"][key] for key in batch[0][1]["model_conds"]}  # fmt: skip
        transformer_options = merged({}, options.get("transformer_options", {}))
        transformer_options["cond_or_uncond"] = [number for number, _, _ in batch]
        transformer_options["uuids"] = [cond["uuid"] for _, cond, _ in batch]
        transformer_options["sigmas"] = timestep
        rows = torch.cat([piece[0] for _, _, piece in batch])
        made = model.apply_model(rows, torch.cat([timestep] * len(batch)), transformer_options, **given)
        for (number, _, (_, weight, place)), output in zip(batch, made.chunk(len(batch)), strict=True):
            sums[number][tuple(place)] += output * weight
            counts[number][tuple(place)] += weight
    return [total / count for total, count in zip(sums, counts, strict=True)]


def _fits(first: tuple, cond: dict, piece: tuple) -> bool:
    """Whether two conditions can be rows of one forward."""
    a, b = first[1]["model_conds"], cond["model_conds"]
    shapes = all(not torch.is_tensor(a[k]) or a[k].shape == b[k].shape for k in a) if a.keys() == b.keys() else False
    return first[2][0].shape == piece[0].shape and shapes


def sampling_function(
    model: BaseModel, x: torch.Tensor, timestep: torch.Tensor, uncond: list, cond: list, scale: float, options: dict
) -> torch.Tensor:
    """The guided x_0; without the negative prompt where it would not count."""
    alone = math.isclose(scale, 1.0) and not options.get("disable_cfg1_optimization", False)
    conds = [cond, None if alone else uncond]
    answers = calc_cond_batch(model, conds, x, timestep, options)
    guided = answers[1] + (answers[0] - answers[1]) * scale if not alone else answers[0]
    for function in options.get("sampler_post_cfg_function", []):
        guided = function({
            "denoised": guided, "cond": cond, "uncond": uncond, "cond_scale": scale, "model": model, "sigma": timestep,
            "uncond_denoised": answers[1], "cond_denoised": answers[0], "model_options": options, "input": x,
        })  # fmt: skip
    return guided


class Masked:
    """What samplers call: the guider, behind a mask of what is kept of an image."""

    def __init__(self, guider: CFGGuider, sigmas: torch.Tensor):
        self.inner_model, self.sigmas = guider, sigmas

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, denoise_mask: Any, model_options: dict, seed: Any
    ) -> torch.Tensor:
        if denoise_mask is not None:
            kept = self.inner_model.inner_model.model_sampling.noise_scaling(sigma, self.noise, self.latent_image)
            x = x * denoise_mask + kept * (1 - denoise_mask)
        out = self.inner_model(x, sigma, model_options=model_options, seed=seed)
        return out if denoise_mask is None else out * denoise_mask + self.latent_image * (1 - denoise_mask)


class KSAMPLER:
    """A sampler of k-diffusion as an object."""

    def __init__(self, sampler_function: Any, extra_options: dict | None = None):
        self.sampler_function, self.extra_options, self.inpaint_options = sampler_function, extra_options or {}, {}

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar):
        sampling = guider.inner_model.model_sampling
        model = Masked(guider, sigmas)
        model.latent_image, model.noise = latent_image, noise
        top = float(sampling.sigma_max)
        whole = math.isclose(top, float(sigmas[0]), rel_tol=1e-5) or float(sigmas[0]) > top
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, whole)
        given = {**extra_args, "denoise_mask": denoise_mask}
        x = self.sampler_function(
            model, x, sigmas, extra_args=given, callback=callback, disable=disable_pbar, **self.extra_options
        )
        return sampling.inverse_noise_scaling(sigmas[-1], x)


def ksampler(name: str, **options: Any) -> KSAMPLER:
    """A sampler by ComfyUI's name."""
    own = {"euler_ancestral_rf": sample_euler_ancestral_rf}
    return KSAMPLER(own.get(name) or getattr(k_diffusion_sampling(), f"sample_{name}"), options)


@torch.no_grad()
def sample_euler_ancestral_rf(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler's method with fresh noise at every step, for flows: down to a lower level, then noise up to the next."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **(extra_args or {}))
        if callback is not None:
            callback({"i": i, "denoised": denoised, "x": x})
        after = sigmas[i + 1]
        if after == 0:
            x = denoised
            continue
        down = after * after / sigmas[i]
        x = (down / sigmas[i]) * x + (1 - down / sigmas[i]) * denoised
        share = (1 - after) / (1 - down)
        x = share * x + torch.randn_like(x) * (after**2 - down**2 * share**2) ** 0.5
    return x


class CFGGuider:
    """Samples with a positive and a negative prompt."""

    def __init__(self, patcher: ModelPatcher):
        self.model_patcher, self.model_options = patcher, patcher.model_options
        self.original_conds: dict[str, list] = {}
        self.cfg = 1.0

    def set_conds(self, positive: list[dict], negative: list[dict]) -> None:
        for name, conds in (("positive", positive), ("negative", negative)):
            self.original_conds[name] = [{**cond, "uuid": uuid.uuid4()} for cond in conds]

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.outer_predict_noise(*args, **kwargs)

    def outer_predict_noise(self, x: Any, timestep: Any, model_options: dict, seed: Any = None) -> torch.Tensor:
        wrappers = wrappers_in(self.model_options["transformer_options"], PREDICT_NOISE)
        return Executor(self.predict_noise, self, wrappers).execute(x, timestep, model_options, seed)

    def predict_noise(self, x: Any, timestep: Any, model_options: dict, seed: Any = None) -> torch.Tensor:
        negative, positive = self.conds.get("negative"), self.conds.get("positive")
        return sampling_function(self.inner_model, x, timestep, negative, positive, self.cfg, model_options)

    def inner_sample(self, noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed):
        sampling = self.inner_model.model_sampling
        for conds in self.conds.values():
            for cond in conds:
                for key, name in (("start_percent", "timestep_start"), ("end_percent", "timestep_end")):
                    if key in cond:
                        cond[name] = sampling.percent_to_sigma(cond[key])
        options = nested_copy(self.model_options)
        options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
        given = {"model_options": options, "seed": seed}
        executor = Executor(sampler.sample, sampler, wrappers_in(options["transformer_options"], SAMPLER_SAMPLE))
        return executor.execute(self, sigmas, given, callback, noise, latent_image, denoise_mask, disable_pbar)

    def outer_sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None,
        latent_shapes=None,
    ):  # fmt: skip
        self.inner_model = self.model_patcher.model
        output = self.inner_sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
        del self.inner_model
        return output

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, seed=None):
        self.conds = {name: [dict(cond) for cond in conds] for name, conds in self.original_conds.items()}
        shapes = None
        if isinstance(noise, list):
            shapes = [tuple(part.shape) for part in noise]
            noise, latent_image = packed(noise), packed(latent_image)
            for cond in (c for conds in self.conds.values() for c in conds):
                cond["model_conds"] = {**cond["model_conds"], "latent_shapes": shapes}
        before = self.model_options
        try:
            self.model_options = nested_copy(before)
            merged(self.model_options.setdefault("transformer_options", {}), {"wrappers": self.model_patcher.wrappers})
            wrappers = wrappers_in(self.model_options["transformer_options"], OUTER_SAMPLE)
            output = Executor(self.outer_sample, self, wrappers).execute(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, True, seed, latent_shapes=shapes
            )
        finally:
            self.model_options = before
        del self.conds
        return unpacked(output, shapes) if shapes else output


def sample(
    patcher: ModelPatcher, noise: Any, positive: list[dict], negative: list[dict], cfg: float, sampler: KSAMPLER,
    sigmas: torch.Tensor, latent_image: Any = None, denoise_mask: Any = None, seed: int = 0, callback: Any = None,
) -> Any:  # fmt: skip
    """As ComfyUI's nodes sample: a guider of its own for every call."""
    guider = CFGGuider(patcher)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    if latent_image is None:
        latent_image = [torch.zeros_like(n) for n in noise] if isinstance(noise, list) else torch.zeros_like(noise)
    torch.manual_seed(seed)  # what k-diffusion's samplers draw
    with torch.inference_mode():
        return guider.sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, seed)
