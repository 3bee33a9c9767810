"""Workers without Ray: the real class in this process, or one that makes clips of nothing; ended and lost at will.

Nothing here waits for torch: Ray's processes import it too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from vaccel.cluster import messages
from vaccel.cluster.crew import LostError
from vaccel.cluster.messages import Clip, Greeting, Ready, Reply, Task
from vaccel.cluster.worker import versions

FINGERPRINT = "0123456789abcdef"


class Plain:
    """A worker that loads nothing and makes every clip of its prompt and seed."""

    def hello(self, nothing: bytes = b"") -> bytes:
        return messages.write(Reply(messages.write(Greeting(versions(), "here"))))

    def load(self, setup: bytes) -> bytes:
        return messages.write(Reply(messages.write(Ready(FINGERPRINT))))

    def work(self, task: bytes) -> bytes:
        asked = messages.read(task, Task)
        if asked.prompt == "odd":
            return messages.failed(RuntimeError("the prompt is too odd"), "task")
        return messages.write(Reply(messages.write(Clip(content_of(asked.prompt, asked.seed), 0.5, "Fo"))))

    def leave(self, nothing: bytes = b"") -> bytes:
        return messages.write(Reply())


class Slow(Plain):
    """Takes a moment for a clip, long enough to be killed in it."""

    def work(self, task: bytes) -> bytes:
        time.sleep(0.4)
        return super().work(task)


class Large(Plain):
    """Sends more than it should."""

    def work(self, task: bytes) -> bytes:
        return bytes(3 * 2**20)


def content_of(prompt: str, seed: int) -> bytes:
    """What ``Plain`` makes."""
    return b"\0\0\0\x18ftyp" + f"{prompt} {seed}".encode()


class Here:
    """A host (``crew.Host``) whose workers are objects of this process.

    Args:
        kind: makes a worker.
        chance: which of the calls that are begun ends next.
        losing: (method, number of this call of it) -> whether the worker is lost in it.
        seen: is called with every call before it is carried out; may raise.
    """

    def __init__(
        self, kind: Callable[[], Any] = Plain, chance: random.Random | None = None,
        losing: Callable[[str, int], bool] = lambda method, number: False,
        seen: Callable[[str, int], None] = lambda method, number: None,
    ):  # fmt: skip
        self.kind, self.chance, self.losing, self.seen = kind, chance or random.Random(0), losing, seen
        self.workers: list[list[Any]] = []  # each [object, whether it lives]
        self.count: dict[str, int] = {}
        self.ended: dict[Any, bytes | None] = {}

    def start(self) -> Any:
        self.workers.append([self.kind(), True])
        return len(self.workers) - 1

    def call(self, worker: Any, method: str, data: bytes) -> Any:
        assert isinstance(data, bytes)
        self.count["calls"] = number = self.count.get("calls", 0) + 1
        return number, worker, method, data

    def over(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        found = [call for call in calls if call in self.ended]
        if found or not calls or not seconds:
            return found
        _, worker, method, data = chosen = self.chance.choice(list(calls))
        self.count[method] = turn = self.count.get(method, 0) + 1
        self.seen(method, turn)
        if self.workers[worker][1] and self.losing(method, turn):
            self.workers[worker][1] = False
        alive = self.workers[worker][1]
        self.ended[chosen] = getattr(self.workers[worker][0], method)(data) if alive else None
        return [chosen]

    def answer(self, call: Any, most: int) -> bytes:
        data = self.ended.pop(call)
        if data is None:
            raise LostError("the process is gone")
        if isinstance(data, bytes) and len(data) > most:
            raise LostError(f"it sent {len(data)} bytes, at most {most} are read")
        return data

    def end(self, worker: Any) -> None:
        self.workers[worker][1] = False

    @property
    def alive(self) -> int:
        return sum(worker[1] for worker in self.workers)
