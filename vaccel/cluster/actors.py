"""Workers as actors of Ray, and the connection to its cluster.  Nothing else of vaccel has heard of Ray."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..extras import needed
from .crew import LostError
from .messages import shown
from .worker import Worker

#: Seconds that a machine is given to answer, and that an answer that is there may take to come over.
REACHED, FETCHED = 10.0, 1800.0
#: What Ray's head says where the process that it forks for a client has died at once, as it does now and then
#: (Ray 2.60); the next one lives.
UNSTARTED, TRIES = "Initialization failure from server", 4
_ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>\[[0-9a-fA-F:]+\]|[\w.-]+):(?P<port>\d{1,5})")


class Places(NamedTuple):
    """How many workers there are to be, how many of them on one machine, and what each is given."""

    count: int
    share: int
    gpus: float
    cpus: float = 1.0


def check_address(address: str) -> str:
    """Raises ``ValueError`` for a text that is no address of a cluster."""
    if address not in ("auto", "local") and not _ADDRESS.fullmatch(address):
        raise ValueError(f"{address!r} is no address: give auto, local, HOST:PORT or ray://HOST:PORT")
    return address


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray`` with a connection to a cluster: "auto" finds one that runs on this machine, "local" starts one
    for the time of the context.  A connection that there is already is used and left open.

    No usage statistics are sent unless ``RAY_USAGE_STATS_ENABLED`` asks for it, and no worker's output is printed.

    Raises ``ConnectionError`` where there is no cluster, ``ModuleNotFoundError`` without Ray.
    """
    check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of its own default
    with needed("--ray"):
        import ray
    if ray.is_initialized():
        yield ray
        return
    _reach(address)
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        for tries_left in reversed(range(TRIES)):
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
                break
            except ConnectionError as error:
                if not tries_left or UNSTARTED not in str(error):
                    raise
    except ImportError as error:
        raise ModuleNotFoundError(f"--ray {address}: {shown(str(error), 300)}", name="ray") from None
    except Exception as error:  # Ray has many; a wrong version of Ray or Python is said in its text
        raise ConnectionError(f"no Ray cluster at {address}: {shown(str(error), 300)}{_hint(address)}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _hint(address: str) -> str:
    if address == "auto":
        return "; `ray start --head` starts one, --ray local one for this command"
    if address == "local" or os.environ.get("RAY_AUTH_MODE"):
        return ""
    # Ray sends a token to no address that was given to it, unless it is told to; and that is not for vaccel to decide.
    return (
        "; a cluster that asks for its token, as those of `ray start` do, wants RAY_AUTH_MODE=token and the token in "
        "RAY_AUTH_TOKEN or ~/.ray/auth_token"
    )


def _reach(address: str) -> None:
    """Ray itself waits for minutes for a machine that is not there."""
    found = _ADDRESS.fullmatch(address)
    if found:
        try:
            socket.create_connection((found["host"].strip("[]"), int(found["port"])), REACHED).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"no Ray cluster at {address}: {error}") from None


def places(ray: Any, count: int | None = None, gpus: float | None = None) -> Places:
    """Places for workers.

    Args:
        count: of workers; by default as many as the cluster's GPUs serve, or one a machine where it has none.
        gpus: of each worker: a share of one or a whole number; by default 1 where the cluster has GPUs, else 0.

    Raises ``ValueError`` for numbers that cannot be, and a cluster without a place.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus is None:
        gpus = 1.0 if any(machine.get("GPU", 0) for machine in machines) else 0.0
    if not (math.isfinite(gpus) and gpus >= 0 and (gpus <= 1 or gpus == int(gpus))):
        raise ValueError(f"a worker takes a share of a GPU or whole ones, got {gpus:g}")
    if gpus:
        room = [math.floor(machine.get("GPU", 0) / gpus) for machine in machines]
    else:
        room = [int(machine.get("CPU", 0) >= 1) for machine in machines]
    found = sum(room) if count is None else count
    if found < 1:
        what = f"{gpus:g} GPU{'s' if gpus > 1 else ''}" if gpus else "a CPU"
        raise ValueError(f"no machine of the cluster has {what} for a worker; --workers waits for machines that come")
    return Places(found, math.ceil(found / max(1, sum(map(bool, room)))), gpus)


class _Actor:
    """A handle, told apart by identity."""

    def __init__(self, handle: Any):
        self.handle = handle


class Actors:
    """Workers as actors of a cluster (``crew.Host``).

    Args:
        ray: the module, connected.
        places: what each is given.
        kind: their class; sent by name, so that every machine has it installed.
    """

    def __init__(self, ray: Any, places: Places, kind: type = Worker):
        self.ray = ray
        self._kind = ray.remote(kind).options(
            num_cpus=places.cpus, num_gpus=places.gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )

    def start(self) -> _Actor:
        """An actor; Ray finds it a place."""
        return _Actor(self._kind.remote())

    def call(self, worker: _Actor, method: str, data: bytes) -> Any:
        """The object that its answer will be."""
        return getattr(worker.handle, method).remote(data)

    def over(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those that have ended; nothing is fetched yet."""
        if not calls:
            return []
        found, _ = self.ray.wait(list(calls), num_returns=1, timeout=seconds, fetch_local=False)
        if len(found) == len(calls):
            return found
        return self.ray.wait(list(calls), num_returns=len(calls), timeout=0, fetch_local=False)[0]

    def answer(self, call: Any, most: int) -> bytes:
        """The bytes, fetched only where they are not too many."""
        if (size := self._size(call)) is not None and size > most + 2**16:  # Ray adds a little
            raise LostError(f"it sent {size} bytes, at most {most} are read")
        try:
            return self.ray.get(call, timeout=FETCHED)
        except self.ray.exceptions.RayError as error:
            raise LostError(_reason(error)) from None

    def end(self, worker: _Actor) -> None:
        """Kills it; of one that is dead already nothing is said."""
        with contextlib.suppress(Exception):
            self.ray.kill(worker.handle, no_restart=True)

    def _size(self, call: Any) -> int | None:
        """Bytes of an answer before it is fetched; None where Ray does not say, as through ray://."""
        try:
            from ray.experimental import get_object_locations

            return get_object_locations([call])[call].get("object_size")
        except Exception:
            return None


def _reason(error: Exception) -> str:
    """What matters of Ray's long texts."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"\w*(Error|Exception)\b.*:", line)]
    causes = [line for line in lines if "exit" in line.lower() or "died" in line.lower()]
    return shown((named[-1:] or causes[-1:] or lines[:1] or [type(error).__name__])[0], 300)
