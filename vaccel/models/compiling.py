"""How a view is compiled: as the user compiled the model in place, else as one full graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

#: What compiles a function.
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


def full_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """As ``compile=True`` asks for it: raises at the first call of what breaks the graph."""
    return torch.compile(function, fullgraph=True)


def compiler_of(model: nn.Module) -> Compiler | None:
    """What compiled the model in place (``model.compile(...)``), with its backend, mode and ``fullgraph``.

    None where it is not compiled.  torch keeps the options in the compiled call alone, as what decorated it; a torch
    that keeps them elsewhere leaves ``full_graph``.
    """
    call = getattr(model, "_compiled_call_impl", None)
    if call is None:
        return None
    for cell in getattr(call, "__closure__", None) or ():
        try:
            held = cell.cell_contents
        except ValueError:  # an empty one
            continue
        if callable(held) and hasattr(held, "compiler_config") and hasattr(held, "callback"):
            return held
    return full_graph
