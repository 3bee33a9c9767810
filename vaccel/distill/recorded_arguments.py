"""The arguments that a pipeline passes to its transformer, recorded.

The pipeline runs for one step with a recorder in its transformer's place, so training passes exactly what the pipeline
passes: embeddings, masks, rotary embeddings, guidance embeddings.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from ..models import Family
from ..models.family import Inputs
from .shards import Tensors, pack

#: Arguments of a pipeline's call that a recording sets itself.
SET_BY_RECORDING = ("num_inference_steps", "generator", "output_type", "return_dict")
#: Attributes that a call or its hooks may set on a transformer.
_SET_ON_MODEL = ("forward", "_compiled_call_impl", "_diffusers_hook")


class Recording(NamedTuple):
    """The arguments that the pipeline passes for one prompt, without noise and timestep."""

    rows: Tensors  # the conditional call's arguments with one row a sample, [...] each
    structure: dict[str, Any]  # of the arguments; ``pack`` says how
    tensors: Tensors  # those of the arguments that all samples share
    latents: list[int]  # shape of a sample's latents

    def difference(self, structure: dict[str, Any], tensors: Tensors) -> str | None:
        """The name of an argument that all samples should share and that differs there; None where there is none."""
        for branch in ("cond", "uncond"):
            ours, theirs = self.structure[branch] or {}, structure[branch] or {}
            for name in sorted({*ours, *theirs}):
                if ours.get(name) != theirs.get(name):
                    return f"{branch}.{name}"
        for name in sorted(self.tensors):
            if not torch.equal(self.tensors[name], tensors[name]):
                return name
        # A mask that only some prompts need is no row of the others.
        return next((f"cond.{n}" for n in sorted({*self.structure["rows"]} ^ {*structure["rows"]})), None)


@torch.no_grad()
def record(pipe: Any, family: Family, prompt: str, call: dict[str, Any], negative: str | None) -> Recording:
    """Runs the pipeline for one step that computes nothing, and keeps the arguments of its calls."""
    calls: list[Inputs] = []
    texts = {"prompt": prompt} if negative is None else {"prompt": prompt, "negative_prompt": negative}
    generator = torch.Generator().manual_seed(0)  # the noise is not used; torch's global generator is left alone
    # Schedulers stretch one step's sigmas, and Qwen-Image's guidance the norm of zeros, by 0 / 0: of no consequence.
    with _recorded(pipe, family, calls), np.errstate(invalid="ignore", divide="ignore"):
        pipe(**texts, **call, num_inference_steps=1, generator=generator, output_type="latent", return_dict=False)
    model = pipe.transformer
    cond, uncond = _branches(family, calls)
    rows, rest = _split(family, cond)
    tensors: Tensors = {}
    structure: dict[str, Any] = {
        "rows": sorted(rows),
        "cond": {name: pack(value, f"cond.{name}", tensors) for name, value in rest.items()},
        "uncond": None,
    }
    if uncond is not None:
        kept, rest = _split(family, uncond)
        packed = {name: pack(value, f"uncond.{name}", tensors) for name, value in (kept | rest).items()}
        structure["uncond"] = {n: {**tree, "rows": True} if n in kept else tree for n, tree in packed.items()}
    latents = [*family.latents(model, cond).shape[1:]]
    return Recording({n: t[0].cpu().clone() for n, t in rows.items()}, structure, tensors, latents)


def _branches(family: Family, calls: list[Inputs]) -> tuple[Inputs, Inputs | None]:
    """The conditional and the unconditional call of one step for one prompt."""
    counts = [len(c["hidden_states"]) for c in calls]
    if family.batched_guidance and counts == [2]:
        return family.rows(calls[0], slice(1, 2)), family.rows(calls[0], slice(0, 1))
    if counts == [1] or (counts == [1, 1] and not family.batched_guidance):
        return calls[0], calls[1] if len(calls) == 2 else None
    raise ValueError(
        f"the pipeline called its transformer with {counts} rows for one prompt and one step: training data need one "
        "call for one sample, and one more or one more row for guidance"
    )


def _split(family: Family, inputs: Inputs) -> tuple[Inputs, Inputs]:
    """A call of one row: the arguments that have one row a sample, and the others."""
    arguments = {k: v for k, v in inputs.items() if k not in ("hidden_states", "timestep", "return_dict")}
    tensors = {k: v for k, v in arguments.items() if k in family.row_arguments and isinstance(v, torch.Tensor)}
    rows = {k: v for k, v in tensors.items() if v.ndim and len(v) == 1}
    return rows, {k: v for k, v in arguments.items() if k not in rows}


@contextlib.contextmanager
def _recorded(pipe: Any, family: Family, calls: list[Inputs]) -> Iterator[None]:
    """Calls of the pipeline's transformer go into ``calls`` while the context lasts, and give zeros."""
    model: nn.Module = pipe.transformer

    @functools.wraps(model.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        inputs = family.bind(model, args, kwargs)
        noisy = family.latents(model, inputs)
        if noisy.shape != inputs["hidden_states"].shape:
            raise ValueError(
                "the pipeline puts an image or a video beside the noise, which training data do not hold: use a "
                "pipeline that takes only text"
            )
        calls.append(dict(inputs))
        output = torch.zeros_like(noisy)
        return Transformer2DModelOutput(sample=output) if kwargs.get("return_dict", True) else (output,)

    before = {name: vars(model)[name] for name in _SET_ON_MODEL if name in vars(model)}
    # Set past the pipeline's __setattr__, which would rewrite its configuration.
    own = {name: vars(pipe)[name] for name in ("scheduler", "_progress_bar_config") if name in vars(pipe)}
    vars(pipe).update(scheduler=copy.deepcopy(pipe.scheduler), _progress_bar_config={"disable": True})
    vars(model).update(forward=forward, _compiled_call_impl=None)
    try:
        yield
    finally:
        if (now := vars(model).get("forward")) is not forward:  # offloading has hooked the model anew
            before["forward"] = now
        _restore(model, _SET_ON_MODEL, before)
        _restore(pipe, ("scheduler", "_progress_bar_config"), own)


def _restore(thing: Any, names: tuple[str, ...], before: dict[str, Any]) -> None:
    for name in names:
        vars(thing).pop(name, None)
    vars(thing).update(before)
