"""Which kernel computes attention: chosen through diffusers' dispatcher, for one pipeline's models alone.

The dispatcher keeps the choice on every attention processor, and besides switches a setting of the whole process; that
one is put back at once, the processors' own when the handle is removed.

Backends that quantise are not taken at their word: each model is tried with them first (``attention_trial.py``), and
one whose output is off by more than ``BOUND`` keeps exact attention.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .attention_trial import Trials, Verdict

#: Names people know, and the dispatcher's.
NAMES = {"sdpa": "native", "cudnn": "_native_cudnn", "flash2": "flash", "flash3": "_flash_3", "sageattention": "sage"}
#: What "auto" takes, by compute capability: the first that is there.  Only exact attention: SageAttention quantises.
BEST = {8: ("flash", "native"), 9: ("_flash_3", "_native_cudnn"), 10: ("_native_cudnn",), 12: ("_native_cudnn",)}
MODULES = {"flash": "flash_attn", "_flash_3": "flash_attn_interface", "sage": "sageattention"}
#: What the names of backends that compute in 8 bits or fewer hold: every SageAttention's, and any that says so.
INEXACT = ("sage", "int8", "fp8", "fp4")
#: The largest relative L2 error of a model's output, by attention that quantises against exact attention, that is
#: accepted.  From below: bfloat16 by itself is 0.009 off at the end of the moving shapes' 8 blocks, and its roundings
#: add up over the 40 to 60 of a large model; a bound must leave room above that.  From above: there 8-bit queries and
#: keys read 0.004, and clips stay as close as bfloat16 leaves them; at 5 bits, 0.03, they have become others
#: (bench/results/cpu/attention.json).  That no difference is ever seen asks for 0.005.
BOUND = 0.03


class Attention:
    """A backend that models use until ``undo``.

    Args:
        models: transformers, those of one pipeline.
        asked: "auto", a name of ``NAMES``, or one of diffusers' ``AttentionBackendName``; with a backend that quantises
            also (name, largest relative error of a model's output) in place of ``BOUND``.

    Raises ``ValueError`` for a backend that does not exist, cannot run here, or that a model does not support, and for
    a bound that is none.
    """

    def __init__(self, models: Sequence[nn.Module], asked: str | tuple[str, float]):
        name, bound = _asked(asked)
        self._name: str | None = None
        self.trials: Trials | None = None
        self._before: list[tuple[Any, Any]] = []
        unable = [type(model).__name__ for model in models if not _processors(model)]
        if unable and name != "auto":
            raise ValueError(f"attention={name!r}: {unable[0]} does not use diffusers' attention dispatcher")
        if not unable:
            self._before = [(p, p._attention_backend) for model in models for p in _processors(model)]
            weight = next(models[0].parameters())
            self._name = best(weight.device, weight.dtype) if name == "auto" else NAMES.get(name, name)
            self._set(models, name, self._name)
            if inexact(self._name):
                self._try(bound)

    @property
    def name(self) -> str | None:
        """The dispatcher's name of what is used; None where the models' own attention is: "auto" found models without
        diffusers' dispatcher, or every model that was tried has refused a backend that quantises."""
        verdicts = self.verdicts
        return None if verdicts and all(verdict.refused for verdict in verdicts) else self._name

    @property
    def verdicts(self) -> list[Verdict]:
        """What trying a backend that quantises has shown, a model each."""
        return self.trials.verdicts if self.trials is not None else []

    @property
    def notes(self) -> list[str]:
        """What a trace should say of it."""
        return self.trials.notes if self.trials is not None else []

    def _try(self, bound: float) -> None:
        """Every model has exact attention until it was tried: what it had before, native where that quantises too."""
        registry, (processor, _) = _registry(), self._before[0]
        chosen, native = processor._attention_backend, type(processor._attention_backend)("native")

        def exact(backend: Any) -> Any:
            used = registry._active_backend if backend is None else backend
            return native if inexact(getattr(used, "value", used)) else backend

        self.trials = Trials([(processor, exact(backend)) for processor, backend in self._before], chosen, bound)

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
        if self.trials is not None:
            self.trials.undo()
        for processor, backend in self._before:
            processor._attention_backend = backend
        self._before = []


def inexact(name: str) -> bool:
    """Whether a backend of the dispatcher quantises what it multiplies."""
    return any(part in name for part in INEXACT)


def _asked(asked: str | tuple[str, float]) -> tuple[str, float]:
    """The name and the bound.  Raises ``ValueError`` for what is neither a name nor a name with one."""
    if isinstance(asked, str):
        return asked, BOUND
    try:
        name, bound = asked
        good = isinstance(name, str) and math.isfinite(bound) and bound > 0
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"attention must be a name, or (name, largest relative error) such as ('sageattention', {BOUND}), got "
            f"{asked!r}"
        )
    if not inexact(NAMES.get(name, name)):
        raise ValueError(f"attention={asked!r}: a largest error is for backends that quantise, and {name} is exact")
    return name, float(bound)


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
