"""A run begins on every rank that shares its model, or on none."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..parallel import Agreement
from .run import Run

#: What of a method names files of this machine; their contents have seals.
FILES = ("artifact", "artifacts", "folder")


def opened(agreement: Agreement | None, make: Callable[[], Run]) -> Run:
    """The run that ``make`` gives.

    Raises what ``make`` raises; ``ValueError`` where another rank's does, or begins a run of another method or number
    of steps: on all ranks, before any forward.
    """
    if agreement is None:
        return make()
    run: Run | None = None
    failure: Exception | None = None
    try:
        run = make()
        mine: dict[str, Any] = {"method": _settings(run.method.to_json()), "steps": run.num_steps}
    except Exception as error:  # whatever it is, the others are told
        failure, mine = error, {"error": str(error) or type(error).__name__}
    every = [json.loads(text) for text in agreement.texts("a run that begins", json.dumps(mine))]
    if failure is not None:
        raise failure
    for rank, other in zip(agreement.ranks, every, strict=True):
        if "error" in other:
            raise ValueError(f"rank {rank}, which shares this model, cannot begin the run: {other['error']}")
    for rank, other in zip(agreement.ranks, every, strict=True):
        if other != every[0]:
            raise ValueError(
                "ranks that share this model begin different runs: rank "
                f"{agreement.ranks[0]} {_said(every[0])}, rank {rank} {_said(other)}: give all of them the same"
            )
    run.trace.notes.append(f"{len(agreement.ranks)} ranks decide together: {', '.join(map(str, agreement.ranks))}")
    return run


def _settings(value: Any) -> Any:
    """A method's JSON without what names files."""
    if isinstance(value, dict):
        return {key: _settings(one) for key, one in value.items() if key not in FILES}
    return [_settings(one) for one in value] if isinstance(value, list) else value


def _said(run: dict[str, Any]) -> str:
    settings = json.dumps(run["method"])
    return f"{run['steps']} steps of {settings if len(settings) <= 200 else settings[:197] + '...'}"
