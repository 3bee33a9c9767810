"""Which modules of a pipeline are called at every step: known by their names, else by what they take."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from .arguments import TIMESTEPS, is_time, parameters

#: What pipelines call their denoisers, in the order of the run.
NAMES = ("transformer", "transformer_2", "unet", "prior", "decoder")
#: Kinds of modules that take a sample and a timestep, and only help a denoiser.
HELPERS = ("ControlNet", "Adapter", "Autoencoder", "VAE", "VQModel", "Projection", "Encoder", "Vocoder")


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """A pipeline's denoisers by their attributes' names, in the order of the run; empty where it has none."""
    known = {name: getattr(pipe, name, None) for name in NAMES}
    found: dict[str, nn.Module] = {}
    for name, module in {**known, **parts_of(pipe)}.items():
        if not isinstance(module, nn.Module) or any(module is other for other in found.values()):
            continue
        # Whoever replaces a transformer by something that is none is told so, or wraps a denoiser for the compiler.
        if name in NAMES[:2] or denoises(name, type(getattr(module, "_orig_mod", module))):
            found[name] = module
    return found


def parts_of(pipe: Any) -> dict[str, Any]:
    """All that a pipeline has, by name: its components, then its other attributes."""
    return {**components_of(pipe), **getattr(pipe, "__dict__", {})}


def components_of(pipe: Any) -> dict[str, Any]:
    """A pipeline's components by name; empty for what is no pipeline."""
    found = getattr(pipe, "components", None)
    return found if isinstance(found, dict) else {}


def main_denoiser(pipe: Any) -> nn.Module:
    """The first of a pipeline's denoisers.  Raises ``ValueError`` where it has none."""
    found = denoisers_of(pipe)
    if not found:
        raise ValueError(f"{type(pipe).__name__} has no module that takes a sample and a timestep")
    return next(iter(found.values()))


def denoises(name: str, kind: type) -> bool:
    """Whether modules of this class, as a pipeline's attribute of this name, are given a sample and a timestep."""
    if timestep_argument(kind) is None or len(parameters(kind)) < 2:
        return False
    names = [base.__name__ for base in kind.__mro__ if not base.__name__.endswith("Mixin")]
    return name in NAMES or not any(helper in each for helper in HELPERS for each in names)


def timestep_argument(kind: type) -> str | None:
    """The name of the argument that says when a call is; None where the class's forward takes none."""
    takes = parameters(kind)
    named = next((name for name in TIMESTEPS if name in takes), None)
    return named or next((name for name in takes if is_time(name)), None)


def takes_timestep(module: nn.Module) -> bool:
    """Whether its forward may be given a timestep: by name, or with whatever else it is given."""
    if timestep_argument(type(module)) is not None:
        return True
    kinds = [p.kind for p in inspect.signature(type(module).forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds
