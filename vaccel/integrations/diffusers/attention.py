"""Which kernel computes attention: chosen through diffusers' dispatcher, for one pipeline's models alone.

The dispatcher keeps the choice on every attention processor, and besides switches a setting of the whole process; that
one is put back at once, the processors' own when the handle is removed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

#: Names people know, and the dispatcher's.
NAMES = {"sdpa": "native", "cudnn": "_native_cudnn", "flash2": "flash", "flash3": "_flash_3", "sageattention": "sage"}
#: What "auto" takes, by compute capability: the first that is there.  Only exact attention: SageAttention quantises.
BEST = {8: ("flash", "native"), 9: ("_flash_3", "_native_cudnn"), 10: ("_native_cudnn",), 12: ("_native_cudnn",)}
MODULES = {"flash": "flash_attn", "_flash_3": "flash_attn_interface", "sage": "sageattention"}


class Attention:
    """A backend that models use until ``undo``.

    Args:
        models: transformers, those of one pipeline.
        name: "auto", a name of ``NAMES``, or one of diffusers' ``AttentionBackendName``.

    Attributes:
        name: the dispatcher's name of what is used; None where "auto" found models without diffusers' dispatcher.

    Raises ``ValueError`` for a backend that does not exist, cannot run here, or that a model does not support.
    """

    def __init__(self, models: Sequence[nn.Module], name: str):
        self.name: str | None = None
        self._before: list[tuple[Any, Any]] = []
        unable = [type(model).__name__ for model in models if not _processors(model)]
        if unable and name != "auto":
            raise ValueError(f"attention={name!r}: {unable[0]} does not use diffusers' attention dispatcher")
        if not unable:
            self._before = [(p, p._attention_backend) for model in models for p in _processors(model)]
            weight = next(models[0].parameters())
            self.name = best(weight.device, weight.dtype) if name == "auto" else NAMES.get(name, name)
            self._set(models, name, self.name)

    def _set(self, models: Sequence[nn.Module], asked: str, chosen: str) -> None:
        registry = _registry()
        active = registry._active_backend
        try:
            for model in models:
                model.set_attention_backend(chosen)
        except (ValueError, RuntimeError, ImportError) as error:
            self.undo()
            raise ValueError(f"attention={asked!r}: {error}") from None
        finally:
            registry.set_active_backend(active)

    def undo(self) -> None:
        """Every processor uses again what it used before."""
        for processor, backend in self._before:
            processor._attention_backend = backend
        self._before = []


def best(device: torch.device, dtype: torch.dtype) -> str:
    """The dispatcher's name of the fastest exact attention that is installed for ``device`` and takes ``dtype``."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "native"
    major, _ = torch.cuda.get_device_capability(device)
    for name in BEST.get(major, ("native",)):
        module = MODULES.get(name)
        if module is None or importlib.util.find_spec(module) is not None:
            return name
    return "native"


def _processors(model: nn.Module) -> list[Any]:
    found = (getattr(module, "processor", None) for module in model.modules())
    return [processor for processor in found if hasattr(processor, "_attention_backend")]


def _registry() -> Any:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return _AttentionBackendRegistry


def active() -> str:
    """The setting of the whole process, which processors without one of their own use."""
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")  # where no model has loaded it nobody asks
    return "" if dispatch is None else str(dispatch._AttentionBackendRegistry._active_backend)
