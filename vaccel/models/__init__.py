"""What the engine has to know about a model, one short file a family.  ``find(transformer)`` picks by class name."""

from __future__ import annotations

from torch import nn

from .cogvideox import CogVideoX
from .family import Family
from .qwen_image import QwenImage
from .wan import Wan

FAMILIES: dict[str, Family] = {family.name: family for family in (Wan(), CogVideoX(), QwenImage())}

__all__ = ["FAMILIES", "CogVideoX", "Family", "QwenImage", "Wan", "find"]


def find(transformer: nn.Module, family: str | Family | None = None) -> Family:
    """The family of a transformer, by class name, or the one asked for.

    Raises ``ValueError`` for a name or a transformer that no family describes.
    """
    if isinstance(family, Family):
        return family
    if family is not None:
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
        return FAMILIES[family]
    name = type(transformer).__name__
    for known in FAMILIES.values():
        if name in known.transformers:
            return known
    classes = ", ".join(c for f in FAMILIES.values() for c in f.transformers)
    raise ValueError(
        f"no family describes {name} (described: {classes}); pass family=... (a vaccel.families.Family), or use "
        "vaccel.Denoiser with plain callables"
    )
