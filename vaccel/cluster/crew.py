"""Hands tasks out to workers, one at a time each; a task whose worker is lost is given to another.

What a worker is, is the host's affair (``actors``): tests have one without Ray.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

from . import messages
from .messages import Greeting, Ready, Reply, Setup, shown
from .worker import versions

#: Times that a task is tried where its workers are lost, and workers in a row that may be lost before they are ready.
TRIES = 3
#: Seconds between two looks at whether something was said or done.
PATIENCE = 1.0


class LostError(Exception):
    """A worker is gone, or can no longer be relied on."""


class CrewError(RuntimeError):
    """The work cannot go on."""


class Host(Protocol):
    """Where workers run."""

    def start(self) -> Any:
        """A worker, which may have to wait for a place."""

    def call(self, worker: Any, method: str, data: bytes) -> Any:
        """A call of one of its methods, which are carried out one after another."""

    def over(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those calls that have ended; waits for one no longer than ``seconds``."""

    def answer(self, call: Any, most: int) -> bytes:
        """What a call that has ended returned.  Raises ``LostError``, also for more than ``most`` bytes."""

    def end(self, worker: Any) -> None:
        """Ends a worker, whatever it does."""


@dataclasses.dataclass(frozen=True)
class Done:
    """A task that is over: its key, and what it made or why it failed."""

    key: Any
    data: bytes = b""
    error: str = ""


@dataclasses.dataclass(frozen=True)
class _Call:
    worker: Any
    stage: Literal["hello", "load", "work"]
    key: Any = None
    task: bytes = b""


#: (key, data) -> a further task of the same key for the same worker, None where there is none.
Further = Callable[[Any, bytes], bytes | None]


class Crew:
    """Workers with the same pipeline each.  A context manager, which ends them.

    Args:
        host: where they run.
        setup: what they load.
        count: how many at most.
        most: bytes of a clip or a sample.
        say: is told of workers that are lost.

    Attributes:
        ready: what the first of them has loaded; after ``open``.
    """

    def __init__(
        self, host: Host, setup: Setup, count: int, *, most: int = messages.MOST_CLIP, tries: int = TRIES,
        say: Callable[[str], None] = lambda text: None,
    ):  # fmt: skip
        self.host, self.count, self.most, self.tries, self.say = host, count, most, tries, say
        self.setup, self.versions = messages.write(setup), versions()
        self.ready: Ready | None = None
        self._calls: dict[Any, _Call] = {}
        self._idle: deque[Any] = deque()
        self._machines: dict[Any, str] = {}
        self._unlucky, self._reason = 0, ""
        self._waiting: deque[tuple[Any, bytes]] = deque()
        self._tried: Counter[Any] = Counter()
        self._found: deque[Done] = deque()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exception: Any) -> None:
        workers = [*self._idle, *(call.worker for call in self._calls.values())]
        try:
            leaving = [self.host.call(worker, "leave", b"") for worker in self._idle]
            for _ in leaving if exception[0] is None else ():
                leaving = [c for c in leaving if c not in self.host.over(leaving, PATIENCE)]
        finally:
            self._idle.clear()
            self._calls.clear()
            for worker in workers:
                self.host.end(worker)

    @property
    def working(self) -> int:
        """Workers that are ready."""
        return len(self._idle) + sum(call.stage == "work" for call in self._calls.values())

    def open(self, wanted: int, looking: Callable[[], None] = lambda: None) -> Ready:
        """Starts workers for so many tasks; returns what the first that is ready has loaded.

        Raises ``ValueError`` where a worker has other versions than the driver or cannot load the pipeline,
        ``CrewError`` where none can be started.
        """
        while self.ready is None:
            self._start(wanted)
            looking()
            self._look()
        return self.ready

    def do(
        self, tasks: Sequence[tuple[Any, bytes]], *, further: Further = lambda key, data: None,
        looking: Callable[[Any], None] = lambda key: None,
    ) -> Iterator[Done]:  # fmt: skip
        """Every task once, in the order in which they end.

        Args:
            tasks: their keys and ``Task`` messages; begun in this order.
            further: see ``Further``.
            looking: is called now and then, with the key of the task that was begun last.

        A task is over for this object once the next one is asked for: what was stopped in between is in ``rest``.
        Raises as ``open`` does.
        """
        self._waiting.extend(tasks)
        self._tried.clear()
        last = None
        while self._waiting or self._found or any(call.stage == "work" for call in self._calls.values()):
            self._start(len(self._waiting) + self.working - len(self._idle))
            while self._idle and self._waiting:
                last, task = self._waiting.popleft()
                self._give(self._idle.popleft(), last, task)
            looking(last)
            if not self._found:
                self._look()
            while self._found:
                done = self._found[0]
                more = further(done.key, done.data) if not done.error else None
                if more is not None and self._idle:
                    self._give(self._idle.pop(), done.key, more)  # the one that is idle last has just made it
                elif more is not None:
                    self._waiting.appendleft((done.key, more))
                yield done
                self._found.popleft()

    def rest(self) -> list[Done]:
        """What has ended and was not taken yet, without waiting for anything, where the work is being stopped."""
        for call in list(self.host.over(list(self._calls), 0.0)):
            if self._calls[call].stage == "work":
                self._ended(call)
        return list(self._found)

    def _start(self, wanted: int) -> None:
        """Starts workers where there are fewer than can be of use."""
        if self._unlucky >= TRIES:
            if not self._idle and not self._calls:
                raise CrewError(f"no worker could be started, {TRIES} times in a row: {self._reason}")
            return
        coming = len(self._calls) + len(self._idle)
        for _ in range(min(self.count, max(wanted, 1)) - coming):
            worker = self.host.start()
            self._calls[self.host.call(worker, "hello", b"")] = _Call(worker, "hello")

    def _give(self, worker: Any, key: Any, task: bytes) -> None:
        self._calls[self.host.call(worker, "work", task)] = _Call(worker, "work", key, task)

    def _look(self) -> None:
        """Waits for something to happen and takes it in."""
        for call in list(self.host.over(list(self._calls), PATIENCE)):
            self._ended(call)

    def _ended(self, ended: Any) -> None:
        call = self._calls[ended]
        try:
            most = messages.MOST_SAID + (self.most if call.stage == "work" else 0)
            reply = _read(self.host.answer(ended, most), Reply, most)
            if reply.fault == "machine":
                raise LostError(reply.error)
            self._take(call, reply)
        except LostError as error:
            self._lost(call, shown(str(error)))
        self._calls.pop(ended, None)

    def _take(self, call: _Call, reply: Reply) -> None:
        worker = call.worker
        if call.stage == "work":
            error = shown(reply.error) if reply.fault else ""
            self._found.append(Done(call.key, b"" if error else reply.data, error))
            self._idle.append(worker)
        elif reply.fault:
            where = self._machines.get(worker, "")
            raise ValueError(shown(reply.error) + (f" (the worker on {where})" if where else ""))
        elif call.stage == "hello":
            greeting = _read(reply.data, Greeting)
            self._machines[worker] = shown(greeting.machine, messages.MOST_NAME)
            self._compare(greeting)
            self._calls[self.host.call(worker, "load", self.setup)] = _Call(worker, "load")
        else:
            ready = _read(reply.data, Ready)
            if self.ready is not None and ready != self.ready:
                raise ValueError(
                    f"the worker on {self._machines[worker]} has loaded other weights or another scheduler than the "
                    "first one: the pipeline's folder must be the same everywhere"
                )
            self.ready, self._unlucky = ready, 0
            self._idle.append(worker)

    def _compare(self, greeting: Greeting) -> None:
        there = {name: shown(greeting.versions.get(name, "none"), 40) for name in self.versions}
        if there != self.versions:
            names = [name for name in self.versions if there[name] != self.versions[name]]
            other, own = (", ".join(f"{name} {found[name]}" for name in names) for found in (there, self.versions))
            raise ValueError(f"the worker on {shown(greeting.machine, 100)} has {other}, this machine {own}: "
                             "install the same on every machine")  # fmt: skip

    def _lost(self, call: _Call, reason: str) -> None:
        self.host.end(call.worker)
        where = self._machines.pop(call.worker, "")
        told = f"a worker{f' on {where}' if where else ''} was lost: {reason}"
        if call.stage != "work":
            self._unlucky, self._reason = self._unlucky + 1, reason
            self.say(told)
            return
        self._tried[call.key] += 1
        if self._tried[call.key] < self.tries:
            self.say(f"{told}; another takes its task")
            self._waiting.appendleft((call.key, call.task))
        else:
            self.say(told)
            self._found.append(Done(call.key, error=f"its worker was lost {self.tries} times, at last: {reason}"))


def _read(data: bytes, kind: type, most: int = messages.MOST_SAID) -> Any:
    """A worker's message; one that says what is none can no longer be relied on."""
    try:
        return messages.read(data, kind, most)
    except ValueError as error:
        raise LostError(f"it sent no answer: {error}") from None
