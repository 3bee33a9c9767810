"""What the engine has to know about a model, one short file a family.  ``find(transformer)`` picks by class name."""

from __future__ import annotations

import importlib
import pkgutil

from torch import nn

from .cogvideox import CogVideoX
from .compiling import Compiler
from .family import DESCRIBED, BlockList, Family
from .generic import Generic
from .qwen_image import QwenImage
from .transformer import Transformer
from .wan import Wan

for _module in pkgutil.iter_modules(__path__):  # a family is there once its file is
    importlib.import_module(f"{__name__}.{_module.name}")

FAMILIES: dict[str, Family] = {kind.name: kind() for kind in sorted(DESCRIBED, key=lambda kind: kind.name)}
#: What stands for every model that no family describes.
GENERIC = Family()

__all__ = [
    "FAMILIES",
    "GENERIC",
    "BlockList",
    "CogVideoX",
    "Family",
    "QwenImage",
    "Wan",
    "family_of",
    "find",
    "model_of",
]


def find(model: nn.Module, family: str | Family | None = None) -> Family:
    """The family of a denoiser: the one asked for, or by its class or a class that it is derived from.

    A model that no family describes is ``GENERIC``: seen from outside.  Raises ``ValueError`` for a name that does not
    exist and for a family that does not describe the model.
    """
    if family is not None:
        if isinstance(family, str) and family not in (*FAMILIES, GENERIC.name):
            raise ValueError(f"unknown family {family!r}; known: {', '.join((*FAMILIES, GENERIC.name))}")
        chosen = family if isinstance(family, Family) else FAMILIES.get(family, GENERIC)
        chosen.check(model)
        return chosen
    return family_of(type(model))


def family_of(kind: type) -> Family:
    """The family of a class of denoisers, or of one that it is derived from; ``GENERIC`` where none describes it."""
    names = [base.__name__ for base in kind.__mro__]
    described = (known for name in names for known in FAMILIES.values() if name in known.transformers)
    return next(described, GENERIC)


def model_of(module: nn.Module, family: Family, *, small: bool = False, compiler: Compiler | None = None) -> Generic:
    """A module as the engine calls it."""
    return (Transformer if family.described else Generic)(module, family, small=small, compiler=compiler)
