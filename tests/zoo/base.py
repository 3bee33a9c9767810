"""What a case is, and how it is run."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import torch

#: Name -> case, in the order in which they are defined.
CASES: dict[str, Case] = {}


@dataclasses.dataclass(frozen=True)
class Case:
    """One pipeline class, or one way of calling it.

    Args:
        name: the pipeline's class, with a variant after a dash ("WanPipeline-two-stages").
        build: makes the pipeline with random weights, the same ones every time, in fp32 and in ``eval`` mode.
        call: makes the arguments of its call beside the number of steps and the generator.
        steps: the name of the argument that has the number of steps; None where the pipeline takes none.
        guidance: arguments that turn its guidance off; None where it has none that could be turned off.
        batch: arguments of a call for two prompts; None where it takes but one.
        denoisers: the attributes that hold what is called at every step.
        modular: whether it is a modular pipeline.
        takes_generator: whether its call takes a ``generator``.
    """

    name: str
    build: Callable[[], Any]
    call: Callable[[], dict[str, Any]]
    steps: str | None = "num_inference_steps"
    guidance: Mapping[str, Any] | None = None
    batch: Mapping[str, Any] | None = None
    denoisers: tuple[str, ...] = ("transformer",)
    modular: bool = False
    takes_generator: bool = True

    def __post_init__(self) -> None:
        if self.name in CASES:
            raise ValueError(f"{self.name} is there twice")
        CASES[self.name] = self


def load_all() -> dict[str, Case]:
    """Every case of this folder's files."""
    for module in pkgutil.iter_modules([str(p) for p in importlib.import_module(__package__).__path__]):
        importlib.import_module(f"{__package__}.{module.name}")
    return CASES


def generate(case: Case, pipe: Any, steps: int = 6, seed: int = 0, **changes: Any) -> list[torch.Tensor]:
    """All tensors of what a call of the pipeline returns, arrays and pictures among them."""
    arguments = {**case.call(), **changes}
    if case.steps is not None:
        arguments[case.steps] = steps
    if case.takes_generator:
        arguments["generator"] = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for what draws from torch's own stream
    with torch.no_grad():
        return tensors(pipe(**arguments))


def tensors(found: Any) -> list[torch.Tensor]:
    """The tensors of a result, in order, whatever they are packed in."""
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, Mapping):
        return [t for value in found.values() for t in tensors(value)]
    if isinstance(found, (list, tuple)):
        return [t for value in found for t in tensors(value)]
    if hasattr(found, "__array__"):
        return [torch.as_tensor(found.__array__().copy())]
    if hasattr(found, "values") and callable(getattr(found, "values", None)):
        return tensors(dict(found.items()))
    return []
