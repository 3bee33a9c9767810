"""A driver of workers that make clips of nothing: ``python ray_double.py ADDRESS FOLDER`` is one to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

from crew_double import FINGERPRINT, Slow

from vaccel.batch.manifest import Manifest, jobs_of
from vaccel.cluster import actors, making, messages
from vaccel.cluster.crew import Crew
from vaccel.cluster.messages import Setup

PROMPTS = [f"clip {number}" for number in range(12)]


def made(ray, folder: Path, kind: type = Slow, count: int = 2, most: int = messages.MOST_CLIP, said=lambda text: None):
    """The jobs that were run; prompts as above."""
    places = actors.Places(count, 1, 0.0, 0.5)
    with Crew(actors.Actors(ray, places, kind), Setup("clips", "", 4), count, most=most, say=said) as crew:
        crew.open(len(PROMPTS))
        assert crew.ready.fingerprint == FINGERPRINT
        return making.make_all(crew, Manifest(folder, FINGERPRINT), jobs_of(PROMPTS), "mine")


if __name__ == "__main__":
    with actors.connected(sys.argv[1]) as connection:
        made(connection, Path(sys.argv[2]))
