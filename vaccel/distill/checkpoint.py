"""Checkpoints of a training in safetensors, as ``artifacts.save_tensors`` writes them: weights and optimisers.

A digest of the contents is kept with them, so that a damaged file is refused rather than trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from ..experts.files import naming
from ..models.weights_digest import digest
from ..planning import artifacts
from ..planning.schema.errors import shown
from .sharding import like

Tensors = dict[str, torch.Tensor]
_ABOUT, _CONTENTS = "about", "contents"


def write(path: Path, tensors: Tensors, about: dict[str, Any]) -> None:
    """Replaces a checkpoint in one move.

    Args:
        about: plain data by name.

    Raises ``OSError`` that names the file; the last checkpoint is whole then.
    """
    # In one field: the order of several in a safetensors file is random, and a rerun's file is to be the same.
    said = json.dumps({**about, _CONTENTS: _contents(tensors)}, sort_keys=True)
    with naming(path):
        artifacts.save_tensors(path, tensors, {_ABOUT: said})


def read(path: Path, needed: dict[str, type]) -> tuple[Tensors, dict[str, Any]]:
    """(tensors on the host, what was written about them); loading a state dict moves what belongs on a device.

    Args:
        needed: the types of what must have been said about it.

    Raises ``ValueError`` that says what is wrong and what to do about it.
    """
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise damaged(path, f"it is no safetensors file, or was cut short ({error})") from None
    about = _about(path, metadata)
    for name, kind in needed.items():
        if type(about.get(name)) is not kind:
            raise damaged(path, f"{name} must be {_WORDS[kind]}, got {shown(about.get(name))}")
    if _CONTENTS in about and about[_CONTENTS] != _contents(tensors):  # earlier versions wrote none
        raise damaged(path, "its contents were changed after they were written")
    return tensors, about


def _about(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """What was written about a checkpoint; earlier versions wrote a field of each."""
    try:
        fields = {name: json.loads(text) for name, text in metadata.items()}
    except (ValueError, RecursionError):
        raise damaged(path, "its description is not JSON") from None
    about = fields.get(_ABOUT, fields)
    if not isinstance(about, dict):
        raise damaged(path, f"{_ABOUT} must be an object, got {shown(about)}")
    return about


_WORDS = {int: "a whole number", dict: "an object"}


def damaged(path: Path, what: str) -> ValueError:
    """The error of a checkpoint that cannot be read."""
    return ValueError(f"the checkpoint {path} is damaged: {what}; remove {path.parent} to start this stage anew")


def filled(path: Path, tensors: Tensors, prefix: str, into: dict[str, torch.Tensor]) -> list[Any]:
    """(tensor, its saved value) of every tensor under a prefix.

    Raises ``ValueError`` where one is missing, left over, or of another shape.
    """
    saved = part(tensors, prefix)
    if odd := sorted(set(saved) ^ set(into)):
        raise damaged(path, f"{prefix}{odd[0]} is in {'it' if odd[0] in saved else 'the networks'} alone")
    for name, value in into.items():
        if saved[name].shape != value.shape:
            raise damaged(path, f"{prefix}{name} is {[*saved[name].shape]}, the network's {[*value.shape]}")
    return [(value, saved[name]) for name, value in into.items()]


def _contents(tensors: Tensors) -> str:
    """A digest of tensors by name, whatever device they are on."""
    holder = nn.Module()
    holder._buffers.update({name: tensor.detach() for name, tensor in tensors.items()})
    return digest(holder, cached=False)


def part(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors under a prefix, by their names without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def of_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> Tensors:
    """An optimiser's state of each parameter, without its settings."""
    states = optimizer.state_dict()["state"]
    return {f"{prefix}{i}.{k}": torch.as_tensor(v) for i, state in states.items() for k, v in state.items()}


def _placed(values: Tensors, parameter: torch.Tensor) -> Tensors:
    """A parameter's state, sharded as the parameter is."""
    return {k: v if k == "step" else like(v, parameter) for k, v in values.items()}


#: What AdamW keeps of every parameter.
ADAMW = frozenset({"step", "exp_avg", "exp_avg_sq"})


def load_optimizer(
    path: Path, optimizer: torch.optim.Optimizer, tensors: Tensors, prefix: str, kept: frozenset[str] = ADAMW
) -> None:
    """Loads an optimiser's state of each parameter; ``kept`` are the names of what it keeps of one.

    Raises ``ValueError`` for another number of parameters, or a state that is not the parameter's.
    """
    state: dict[int, Tensors] = {}
    for key, value in part(tensors, prefix).items():
        index, _, name = key.partition(".")
        if not index.isdecimal():
            raise damaged(path, f"{prefix}{key} names no parameter")
        state.setdefault(int(index), {})[name] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        if index >= len(parameters) or set(values) != kept:
            raise damaged(path, f"{prefix}{index} is not the state of one of {len(parameters)} parameters")
        if any(values[name].shape != parameters[index].shape for name in kept - {"step"}):
            raise damaged(path, f"{prefix}{index} is of another shape than its parameter")
    state = {i: _placed(values, parameters[i]) for i, values in state.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
