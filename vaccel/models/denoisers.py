"""Which modules of a pipeline are called at every step: known by their names, else by what they take."""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import Any

from torch import nn

from .layout import TIMESTEPS

#: What pipelines call their denoisers, in the order of the run.
NAMES = ("transformer", "transformer_2", "unet", "prior", "decoder")
#: Kinds of modules that take a sample and a timestep, and only help a denoiser.
HELPERS = ("ControlNet", "Adapter", "Autoencoder", "VAE", "VQModel", "Projection", "Encoder", "Vocoder")


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """A pipeline's denoisers by their attributes' names, in the order of the run; empty where it has none."""
    found = {name: module for name in NAMES if isinstance(module := getattr(pipe, name, None), nn.Module)}
    found = {name: module for name, module in found.items() if name in NAMES[:2] or timestep_argument(module)}
    for name, module in _modules(pipe).items():
        if name not in found and is_denoiser(module) and not any(module is known for known in found.values()):
            found[name] = module
    return found


def main_denoiser(pipe: Any) -> nn.Module:
    """The first of a pipeline's denoisers.  Raises ``ValueError`` where it has none."""
    found = denoisers_of(pipe)
    if not found:
        raise ValueError(f"{type(pipe).__name__} has no module that takes a sample and a timestep")
    return next(iter(found.values()))


def _modules(pipe: Any) -> dict[str, nn.Module]:
    components = getattr(pipe, "components", None)
    every = dict(components) if isinstance(components, dict) else {}
    return {name: m for name, m in {**every, **getattr(pipe, "__dict__", {})}.items() if isinstance(m, nn.Module)}


def is_denoiser(module: nn.Module) -> bool:
    """Whether its forward takes a sample and a timestep."""
    kind = type(module)
    names = [base.__name__ for base in kind.__mro__ if not base.__name__.endswith("Mixin")]
    if any(helper in name for helper in HELPERS for name in names):
        return False
    return len(_parameters(kind)) > 1 and timestep_argument(module) is not None


@functools.lru_cache(maxsize=256)
def _signature_of(kind: weakref.ref) -> tuple[str, ...]:
    forward = getattr(kind(), "forward", None)
    try:
        return tuple(inspect.signature(forward).parameters)[1:]
    except (TypeError, ValueError):
        return ()


def _parameters(kind: type) -> tuple[str, ...]:
    """The names of what a module's forward takes."""
    return _signature_of(weakref.ref(kind))


def timestep_argument(module: nn.Module) -> str | None:
    """The name of the argument that says when a call is; None where it takes none."""
    takes = _parameters(type(module))
    named = next((name for name in TIMESTEPS if name in takes), None)
    return named or next((name for name in takes if "timestep" in name), None)


def takes_timestep(module: nn.Module) -> bool:
    """Whether its forward may be given a timestep: by name, or with whatever else it is given."""
    if timestep_argument(module) is not None:
        return True
    kinds = [p.kind for p in inspect.signature(type(module).forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds
