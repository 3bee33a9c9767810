"""Whose decision: that of all ranks that share a call of the model, made of the same numbers on each.

A policy is a function of the numbers that it reads (errors, changes of a signal) and of the step.  So nothing of a
decision itself is sent: what a policy reads is made the same on every rank, when it is read, and the same decision
follows on each.  A method that reads nothing, as a fixed schedule, exchanges nothing.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from .exchange import Exchange

Rule = Literal["largest", "mean"]


class Agreement:
    """For one call of a pipeline or one run of a loop.

    Attributes:
        ranks: those that share it, ascending.
        first: whether this rank is the one whose choice counts where only one can choose.
        spread: the largest relative difference so far between what ranks have read of the same thing.
    """

    def __init__(self, exchange: Exchange):
        self._exchange, self._call = exchange, exchange.begin()
        self.ranks, self.first = exchange.ranks, exchange.rank == exchange.ranks[0]
        self.spread = 0.0

    def texts(self, where: str, mine: str) -> list[str]:
        """Every rank's text, in their order.  Raises ``RanksApart`` where one does not come or is elsewhere."""
        return self._exchange.texts(self._call, where, mine)

    def values(self, where: str, mine: Any, rule: Rule = "largest") -> Any:
        """What counts instead of this rank's ``mine``, a number or lists of them: of each the largest, or the mean.

        The largest is the most cautious rank's, as in a batch the worst sample decides; one that is no number counts
        before all.  Raises ``RanksApart`` where a rank does not come, or reads something else.
        """
        flat: list[float] = []
        _flatten(mine, flat)
        every = self._exchange.numbers(self._call, where, flat)
        agreed = []
        for column in zip(*every, strict=True):
            value = _largest(column) if rule == "largest" else math.fsum(column) / len(column)
            if any(one != column[0] for one in column):
                self._differ(column)
            agreed.append(value)
        return _shaped(mine, iter(agreed))

    def _differ(self, column: tuple[float, ...]) -> None:
        off = max(column) - min(column) if all(map(math.isfinite, column)) else math.inf
        self.spread = max(self.spread, off / max(map(abs, column)) if math.isfinite(off) else off)

    def leave(self, why: BaseException) -> None:
        """The call ends by an error here: others who wait for this rank are told."""
        said = (str(why).strip().splitlines() or [""])[0]
        self._exchange.leave(self._call, f"{type(why).__name__}: {said}" if said else type(why).__name__)


def _largest(column: tuple[float, ...]) -> float:
    return next((value for value in column if value != value), max(column))


def _flatten(values: Any, into: list[float]) -> None:
    if isinstance(values, list):
        for value in values:
            _flatten(value, into)
    else:
        into.append(float(values))


def _shaped(like: Any, values: Any) -> Any:
    """The values in the lists of ``like``."""
    return [_shaped(one, values) for one in like] if isinstance(like, list) else next(values)
