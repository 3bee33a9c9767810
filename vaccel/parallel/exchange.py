"""What ranks tell one another: a few numbers or a text, over a gloo group of their own on the host.

A group of its own, so that nothing here stands in the queue of the model's collectives, and so that waiting has a limit
of its own.  Every exchange says where it is made: ranks that are not at the same place all hear of it and stop, instead
of taking one another's numbers for something else.  No object is pickled.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

#: Seconds that a rank waits for the others, unless VACCEL_PARALLEL_TIMEOUT says otherwise.
LIMIT = 300.0
#: Numbers of the first message of an exchange, which has the same length whatever a rank has to say.
FRAME = 32
#: So often a rank that waits looks whether another has left, in seconds.
LOOK = 0.5
#: Characters of a text: a method's settings have some thousands.
MOST_TEXT = 1 << 24


class RanksApart(RuntimeError):  # noqa: N818  the ranks are, and no error of one of them
    """Ranks that share a model are no longer at the same place: one has died, raised, hangs, or does something else."""


def limit() -> float:
    """Seconds that a rank waits for the others.  Raises ``ValueError`` for a setting that is no such number."""
    said = os.environ.get("VACCEL_PARALLEL_TIMEOUT")
    if said is None:
        return LIMIT
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ValueError(f"VACCEL_PARALLEL_TIMEOUT must be a number of seconds above 0, got {said!r}")
    return seconds


class Exchange:
    """Between some ranks, as long as they are initialised.  One at a time: a rank's calls come one after another."""

    def __init__(self, ranks: tuple[int, ...]):
        self.ranks, self.rank, self.limit = ranks, dist.get_rank(), limit()
        self.world = dist.group.WORLD
        self.broken = ""
        self.calls = self.count = 0  # calls of a pipeline; exchanges of all of them
        self._lock = threading.Lock()
        store = dist.distributed_c10d._get_default_store()
        self._store = dist.PrefixStore(f"vaccel/{'-'.join(map(str, ranks))}", store)
        try:
            self._group = dist.new_group(
                list(ranks), timeout=self._span(self.limit), backend="gloo", use_local_synchronization=True
            )
        except RuntimeError as error:
            raise RanksApart(
                f"vaccel: ranks {_list(ranks)} share this model, and not all of them came to run it within "
                f"{self.limit:g} s: every one must call the pipeline ({_first_line(error)})"
            ) from None

    @staticmethod
    def _span(seconds: float) -> datetime.timedelta:
        return datetime.timedelta(seconds=seconds)

    def begin(self) -> int:
        """A call of the pipeline begins; its number, the same on every rank."""
        self.calls += 1
        return self.calls

    # -- what is exchanged -------------------------------------------------------------------------------------------

    def numbers(self, call: int, where: str, mine: Sequence[float]) -> list[list[float]]:
        """Every rank's numbers, in the order of the ranks.  Raises ``RanksApart``."""
        with self._lock:
            frame = torch.zeros(FRAME, dtype=torch.float64)
            frame[:3] = torch.tensor([call, zlib.crc32(where.encode()), len(mine)], dtype=torch.float64)
            values = torch.tensor(list(mine), dtype=torch.float64)
            here = min(len(mine), FRAME - 3)
            frame[3 : 3 + here] = values[:here]
            frames = self._gathered(call, where, frame)
            if any(not torch.equal(other[:3], frame[:3]) for other in frames):
                raise self._apart(call, where, self._texts(call, where))
            found = [other[3 : 3 + here] for other in frames]
            if len(mine) > here:
                rest = self._gathered(call, where, values[here:])
                found = [torch.cat(pair) for pair in zip(found, rest, strict=True)]
            return [each.tolist() for each in found]

    def texts(self, call: int, where: str, mine: str) -> list[str]:
        """Every rank's text, in the order of the ranks.  Raises ``RanksApart``."""
        data = mine.encode()
        lengths = [int(length) for (length,) in self.numbers(call, where, [len(data)])]
        if max(lengths) > MOST_TEXT:
            raise ValueError(f"vaccel: {where} has {max(lengths)} bytes, more than the {MOST_TEXT} that ranks exchange")
        with self._lock:
            return self._bytes(call, where, data, lengths)

    def _bytes(self, call: int, where: str, data: bytes, lengths: list[int]) -> list[str]:
        padded = bytearray(data.ljust(max(*lengths, 1), b"\0"))
        found = self._gathered(call, where, torch.frombuffer(padded, dtype=torch.uint8))
        cut = zip(found, lengths, strict=True)
        return [bytes(each[:length].tolist()).decode(errors="replace") for each, length in cut]

    def _texts(self, call: int, where: str) -> list[str]:
        """Every rank's place, where they are not the same: all have seen it, so all come here."""
        data = f"call {call}, {where}".encode()[:200]
        lengths = self._gathered(call, where, torch.tensor([len(data)], dtype=torch.float64))
        return self._bytes(call, where, data, [int(length) for length in lengths])

    def _apart(self, call: int, where: str, places: list[str]) -> RanksApart:
        said = "; ".join(f"rank {rank}: {place}" for rank, place in zip(self.ranks, places, strict=True))
        return self._break(
            f"ranks that share this model are at different places ({said}): give all of them the same call"
        )

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _gathered(self, call: int, where: str, mine: torch.Tensor) -> list[torch.Tensor]:
        if self.broken:
            raise RanksApart(self.broken)
        self.count += 1
        outs = [torch.empty_like(mine) for _ in self.ranks]
        until = time.monotonic() + self.limit
        try:
            work = dist.all_gather(outs, mine, group=self._group, async_op=True)
        except RuntimeError as error:
            raise self._lost(call, where, error) from None
        while True:
            try:
                work.wait(self._span(min(LOOK, self.limit)))
                return outs
            except RuntimeError as error:
                if work.is_completed() or time.monotonic() >= until:
                    raise self._lost(call, where, error) from None
            if said := self._who_left(call):
                raise self._break(said)

    def leave(self, call: int, why: str) -> None:
        """This rank's call has ended before its end: the others, who may wait for it, shall know."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"left/{call}/{self.rank}", json.dumps([self.count, why[:400]]))

    def _who_left(self, call: int) -> str:
        """Which other rank has ended the same call, and why."""
        for rank in self.ranks:
            key = f"left/{call}/{rank}"
            with contextlib.suppress(RuntimeError, ValueError):
                if rank == self.rank or not self._store.check([key]):
                    continue
                count, why = json.loads(self._store.get(key))
                if count < self.count:  # else it has left after it said its part of this exchange
                    return f"rank {rank}, which shares this model, has ended its call ({why})"
        return ""

    def _lost(self, call: int, where: str, error: RuntimeError) -> RanksApart:
        """Somebody did not come: those who wait say so to one another, and who says nothing is missing."""
        if said := self._who_left(call):
            return self._break(said)
        missing: Sequence[int] = ()
        with contextlib.suppress(RuntimeError):
            self._store.set(f"waits/{self.count}/{self.rank}", "")
            missing = self._until_known(lambda rank: self._store.check([f"waits/{self.count}/{rank}"]))
        who = f"rank {_list(missing)} did" if len(missing) == 1 else f"ranks {_list(missing or self.ranks)} did"
        return self._break(
            f"{who} not come to {where} within {self.limit:g} s, or died ({_first_line(error)}): end all ranks and "
            "start them anew. VACCEL_PARALLEL_TIMEOUT sets another limit, in seconds"
        )

    def _until_known(self, waits: Callable[[int], bool]) -> list[int]:
        """The ranks that are not waiting themselves, looked at for as long as two looks of the others take."""
        until = time.monotonic() + 2 * LOOK
        missing = [rank for rank in self.ranks if rank != self.rank]
        while missing and time.monotonic() < until:
            missing = [rank for rank in missing if not waits(rank)]
            time.sleep(LOOK / 10)
        return missing

    def _break(self, said: str) -> RanksApart:
        self.broken = f"vaccel: {said}"
        return RanksApart(self.broken)


_exchanges: dict[tuple[int, ...], Exchange] = {}
_making = threading.Lock()


def exchange_of(ranks: tuple[int, ...]) -> Exchange:
    """The one between these ranks, made by all of them together when it is first asked for."""
    with _making:
        known = _exchanges.get(ranks)
        if known is None or known.world is not dist.group.WORLD:
            known = _exchanges[ranks] = Exchange(ranks)
        return known


def _list(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
