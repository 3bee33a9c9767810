"""Several ranks that share one pipeline's model: what one of them finds out alone counts for all, or for none."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

from ...methods.base import method_from_json
from ...parallel import Agreement, agreement_of
from .auto import Choice, Chosen

#: Why steps are not captured where ranks share a model.
UNCAPTURED = "several ranks share its calls: one that captures at a moment of its own would leave the others waiting"


def agreement_for(scope: Any) -> Agreement | None:
    """What a call of the pipeline agrees with other ranks by; None where this rank decides alone."""
    models = [m.model for stage in scope.stages.values() for m in (stage.large, stage.small) if m is not None]
    return agreement_of(models, scope.session.process_group)


def chosen(agreement: Agreement | None, choose: Callable[[], Choice]) -> Chosen:
    """What ``Auto`` has chosen: by the first rank's times and files, for all.

    Raises ``ValueError`` on all ranks where the first one's choice does.
    """
    if agreement is None:
        return choose().taken()
    mine: Chosen | None = None
    failure: Exception | None = None
    try:
        mine = choose().taken()
        said = {"method": mine.method.to_json(), "note": mine.note, "predicted": mine.predicted}
    except Exception as error:  # whatever it is: the others wait for this rank's word
        failure, said = error, {"error": str(error) or type(error).__name__}
    first = json.loads(agreement.texts("what Auto chooses", json.dumps(said))[0])
    if agreement.first:
        if failure is not None:
            raise failure
        return mine
    if "error" in first:
        raise ValueError(first["error"])
    # The first rank alone keeps what is learnt.
    return Chosen(method_from_json(first["method"]), first["note"], None, first["predicted"])


def refused(agreement: Agreement | None, label: str, mine: str) -> str:
    """Why attention that was tried is refused, "" where it is not: by one rank for all."""
    if agreement is None:
        return mine
    every = zip(agreement.ranks, agreement.texts(f"the trial of attention on the {label}", mine), strict=True)
    return mine or next((f"{said} on rank {rank}" for rank, said in every if said), "")


def short_alone(scope: Any, said: str, error: Exception) -> NoReturn:
    """This rank has no memory for caches.

    It cannot compute in full on its own: the others are in the middle of the same call, or will skip the next step.
    """
    raise RuntimeError(
        f"vaccel: no memory for the caches at step {scope.run.index} on one of {len(scope.agreement.ranks)} ranks that "
        f"share this model ({said}): leave more memory free on it, take a method that caches less (vaccel.Forecast "
        "keeps latents alone), or compute in full with handle.using(None), on all ranks"
    ) from error
