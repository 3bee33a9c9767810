"""What a calibration is bound to: the models, their weights and the scheduler, and how they differ from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..planning.artifacts import SCHEMA, Fitted, fitted
from .channel_axis import config_of
from .contents import hash_of
from .denoisers import denoisers_of
from .weights_digest import identity


def of_model(model: nn.Module) -> dict[str, str]:
    """Class of a diffusers model and the hash of its configuration."""
    text = json.dumps(_config(model), sort_keys=True, default=str)
    return {"class": type(model).__name__, "config": hashlib.sha256(text.encode()).hexdigest()[:16]}


def of_scheduler(scheduler: Any) -> dict[str, Any]:
    """Class and configuration of a scheduler."""
    return {"class": type(scheduler).__name__, "config": json.loads(json.dumps(_config(scheduler), default=str))}


def header(method: str, pipe: Any, call: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """What all samples of an artifact of ``method`` share: models, weights, scheduler, the call's plain arguments."""
    models = denoisers_of(pipe)
    return {
        "schema": SCHEMA,
        "method": method,
        **settings,
        "model": of_model(next(iter(models.values()))),
        "weights": identity(models),
        "scheduler": of_scheduler(pipe.scheduler),
        "call": {name: _said(value) for name, value in call.items() if value is not None},
    }


def _said(value: Any) -> Any:
    """A call's argument as a header holds it: plain values as they are, others by their kind and a hash."""
    if isinstance(value, (int, float, str, bool)):
        return value
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {hash_of(value.detach().float().cpu().numpy().tobytes())[:16]}"
    if isinstance(value, (list, tuple)):
        return [_said(inner) for inner in value]
    if isinstance(value, Mapping):
        return {str(name): _said(inner) for name, inner in value.items()}
    contents = getattr(value, "tobytes", None)  # an image or an array
    size = getattr(value, "size", getattr(value, "shape", ""))
    return f"{type(value).__name__} {size} {hash_of(contents())[:16]}" if callable(contents) else type(value).__name__


def differences(made_with: Fitted, models: Mapping[str, nn.Module], scheduler: Any) -> tuple[list[str], list[str]]:
    """How a pipeline's models and its scheduler differ from what a calibration was made with, a phrase each.

    Weights count where the calibration says which it was made on.
    """
    there = dict(made_with)
    made = {"model": of_model(next(iter(models.values()))), "scheduler": of_scheduler(scheduler)}
    if "model's weights" in there:
        made["weights"] = identity(models)
    here = dict(fitted(made))
    names = (
        list(there)
        if here["scheduler"] == there.get("scheduler")
        else [n for n in there if not n.startswith("scheduler's")]
    )
    found = {n: f"{n} {there[n]}, here {here.get(n)}" for n in names if here.get(n) != there[n]}
    model = [phrase for n, phrase in found.items() if n.startswith("model")]
    return model, [phrase for n, phrase in found.items() if not n.startswith("model")]


def _config(thing: Any) -> dict[str, Any]:
    return {k: v for k, v in config_of(thing).items() if not k.startswith("_")}
