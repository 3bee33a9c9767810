"""Where caches do not fit: they are given up in the middle of a run, and the rest of it is computed in full."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from ...out_of_memory import out_of_memory
from ...parallel import RanksApart
from . import ownership
from .together import short_alone


def short_of_memory(scope: Any, error: RuntimeError) -> str:
    """What an error of a call says of memory that has run out, where caches can be given up for it; else "".

    Raises ``RuntimeError`` where this rank alone would have to.
    """
    if not scope.falls_back or scope.session.experts is not None or scope.run is None:
        return ""
    if isinstance(error, RanksApart):
        return ""
    said = out_of_memory(error)
    if said and scope.agreement is not None:
        short_alone(scope, said, error)
    return said


def in_full_from_here(scope: Any, module: nn.Module, inputs: dict[str, Any], said: str) -> Any:
    """The plain model's answer, with everything freed that the run held; so are all later ones of the pipeline's call.

    Raises what the model raises: where its own forward does not fit, nothing of ours can help.
    """
    run = scope.run
    scope.plainly()
    run.release()
    scope.workspace.clear()
    note = f"vaccel: no memory for the caches at step {run.index} ({said}); computed in full"
    run.trace.notes.append(note)
    if not scope.session.gave_up:
        scope.session.gave_up = True
        warnings.warn(note, stacklevel=4)
    return ownership.plain_call(module)(**inputs)
