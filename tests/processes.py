"""Processes of their own for the tests that need them, in milliseconds.

Starting Python and importing torch, diffusers and vaccel takes seconds.  One server a test process does it once, when
it is first asked, and every process is a fork of it: new to pytest, Accelerate and torch's distributed package, which
keep their state in module globals.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny", "vaccel.distill.stages", "vaccel.calibrate"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    try:
        from multiprocessing import forkserver

        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def pipe() -> tuple[Any, Any]:
    """(what is read here, what a process is given to send with)."""
    return _server().Pipe(duplex=False)


def start(function: Callable[..., None], *args: Any, environment: dict[str, str] | None = None) -> BaseProcess:
    """``function(*args)`` in another process; a function of a test module, ``args`` such as can be pickled."""
    process = _server().Process(target=_run, args=(environment or {}, function, args), daemon=True)
    process.start()
    return process


def _run(environment: dict[str, str], function: Callable[..., None], args: tuple) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*args)


def finish(*processes: BaseProcess, timeout: float = 300) -> None:
    """Waits for them; ``AssertionError`` unless all end well."""
    for process in processes:
        process.join(timeout)
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # of those that have not ended
    assert found == [0] * len(processes), "what they said is among the captured output"


def together(function: Callable[..., None], *args: Any, count: int = 2) -> None:
    """The same in ``count`` processes that are one another's ranks, as ``torchrun`` starts them on CPUs."""
    finish(*ranks(function, *args, count=count))


def ranks(
    function: Callable[..., None], *args: Any, count: int = 2, environment: dict[str, str] | None = None
) -> list[BaseProcess]:
    """Such processes, started and not waited for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared["ACCELERATE_USE_CPU"] = "true"
    shared |= environment or {}
    each = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [start(function, *args, environment=rank) for rank in each]
