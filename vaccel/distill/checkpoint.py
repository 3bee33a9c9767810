"""Checkpoints of a training in safetensors, as ``artifacts.save_tensors`` writes them: weights and optimisers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """(tensors on the host, metadata); loading a state dict moves what belongs on a device."""
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
    return load_file(path), metadata


def part(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors under a prefix, by their names without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def of_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> Tensors:
    """An optimiser's state of each parameter, without its settings."""
    states = optimizer.state_dict()["state"]
    return {f"{prefix}{i}.{k}": torch.as_tensor(v) for i, state in states.items() for k, v in state.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, prefix: str) -> None:
    state: dict[int, Tensors] = {}
    for key, value in part(tensors, prefix).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
