"""``--ray``: what its options are, and the workers that a command has by them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .console import leave, say

if TYPE_CHECKING:
    from ..cluster.crew import Crew
    from ..cluster.messages import Setup

_PANEL = "Many machines (vaccel[ray])"
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a Ray cluster: auto (the one that runs here), local (one for this command), HOST:PORT or "
        "ray://HOST:PORT.",
        rich_help_panel=_PANEL,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Workers, each with one pipeline.",
        show_default="a GPU each, or one a machine",
        rich_help_panel=_PANEL,
    ),
]
Gpus = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker", min=0, help="GPUs of each worker; 0.5 for two on one.",
        show_default="1, or 0 where there are none", rich_help_panel=_PANEL,
    ),
]  # fmt: skip


class Cluster(NamedTuple):
    """What was asked for; ``address`` is None where it was not."""

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None

    def checked(self) -> Cluster:
        """Raises ``typer.BadParameter`` for options that make no sense."""
        if self.address is None:
            for option, value in (("--workers", self.workers), ("--gpus-per-worker", self.gpus)):
                if value is not None:
                    raise typer.BadParameter("is for --ray", param_hint=option)
            return self
        from ..cluster.actors import check_address

        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise typer.BadParameter("is not for torchrun: Ray starts the workers", param_hint="--ray")
        try:
            check_address(self.address)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--ray") from None
        return self


def anywhere(name: str | None) -> str | None:
    """A folder by its whole path, which it must have on every machine; any other name as it is."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def threads() -> int:
    """Of every worker on a CPU: those that were asked for here; 0 for its share of the cores."""
    found = os.environ.get("OMP_NUM_THREADS", "")
    return int(found) if found.isdecimal() else 0


@contextlib.contextmanager
def crew_of(
    cluster: Cluster,
    setup: Callable[[int], Setup],
    wanted: int,
    looking: Callable[[str], None],
    most: int | None = None,
) -> Iterator[Crew]:
    """Workers with their pipelines, the first of them ready; ended with the context.

    Args:
        setup: makes what they load of the number of workers on one machine.
        wanted: tasks that there are.
        looking: is told what is waited for.
        most: bytes of an answer.

    Ends the command with 1 where no worker can go on.  Raises ``ValueError`` and ``OSError`` for what can be mended.
    """
    from ..cluster import actors, messages
    from ..cluster.crew import Crew, CrewError

    looking(f"connecting to Ray ({cluster.address})")
    with actors.connected(cluster.address) as ray:
        places = actors.places(ray, cluster.workers, cluster.gpus)
        host = actors.Actors(ray, places)
        count = min(places.count, wanted)
        made = setup(places.share)
        options: dict[str, Any] = {"say": lambda text: say(text, "yellow"), "most": most or messages.MOST_CLIP}
        try:
            with Crew(host, made, count, **options) as crew:
                crew.open(wanted, lambda: looking(f"{count} worker{'s' * (count > 1)} loading"))
                yield crew
        except CrewError as error:
            say(f"stopped: {error}; the same command goes on", "red")
            leave(1)
