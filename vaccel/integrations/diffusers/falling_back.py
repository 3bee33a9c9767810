"""Where caches do not fit: they are given up in the middle of a run, and the rest of it is computed in full."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from . import ownership


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
