"""A rank that dies, hangs, raises or runs out of memory: the others end within the time limit, and say why."""

from __future__ import annotations

import json
from pathlib import Path

import processes
import pytest
import ranks

#: Seconds that a rank waits in these tests.
LIMIT = 4
#: Beside the wait: steps, and what survivors ask one another, on a slow machine.
SLACK = 60

#: (fault, how the model is shared, method): an adaptive method asks the others at a step, a fixed one computes alone.
FAULTS = [
    ("killed", "", "easycache"),
    ("killed", "ulysses 2", "easycache"),
    ("killed", "ulysses 2", "blocks"),
    ("hangs", "", "easycache"),
    ("raises", "", "easycache"),
    ("memory", "", "easycache"),
    ("memory", "ulysses 2", "easycache"),
    ("memory", "ulysses 2", "blocks"),
]


@pytest.mark.parametrize(("kind", "share", "name"), FAULTS)
def test_the_others_end(tmp_path, kind, share, name):
    limit = {"VACCEL_PARALLEL_TIMEOUT": "60" if kind == "raises" else str(LIMIT)}
    first, second = processes.ranks(ranks.fault, str(tmp_path), kind, share, name, environment=limit)
    first.join(LIMIT + SLACK)
    assert first.exitcode == 0, "rank 0 has ended by itself"
    said, seconds = json.loads(Path(tmp_path, f"{kind}.0.json").read_text())
    if kind == "memory":
        second.join(SLACK)
        theirs, _ = json.loads(Path(tmp_path, f"{kind}.1.json").read_text())
        assert "no memory for the caches at step 0 on one of 2 ranks that share this model" in theirs
        assert "handle.using(None)" in theirs
    second.kill()
    second.join()
    assert not said.startswith("done"), "half of a model makes no video"
    assert seconds < LIMIT + SLACK
    if share:  # torch's own collective, or ours: whichever waits
        assert "RuntimeError" in said or "RanksApart" in said
        return
    assert said.startswith("RanksApart: vaccel: rank 1"), said
    if kind in ("killed", "hangs"):
        assert "did not come to step 4, easycache.error within 4 s, or died" in said
        assert "start them anew" in said
    if kind == "raises":
        assert 'has ended its call (KeyError: "a callback\'s own")' in said
        assert seconds < SLACK / 2, "told, and not waited for"
    if kind == "memory":
        assert "has ended its call (RuntimeError: vaccel: no memory for the caches" in said
