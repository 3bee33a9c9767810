"""A rehearsal of ``bench/kills.py``: two tries of a few jobs, and what its comparison finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import kill_tries  # noqa: E402

#: Every job that is killed here; ``python bench/kills.py`` kills all of them.
REHEARSED = ("distill prepare", "generate")


def test_killed_and_run_again(tmp_path):
    asked = [part for name in REHEARSED for part in ("--job", name)]
    command = [
        sys.executable,
        str(BENCH / "kills.py"),
        "--tries",
        "2",
        "--writers",
        "0",
        "--out",
        str(tmp_path),
        *asked,
    ]
    path = os.pathsep.join([str(BENCH.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "kills.json").read_text())["rows"]
    assert [row["job"] for row in rows] == list(REHEARSED)
    assert all(row["tries"] == 2 and len(row["repeated"]) == 2 for row in rows)


def test_differences_are_found(tmp_path):
    for name, value, seconds in (("a", 1.0, 3), ("b", 1.0, 4), ("c", 2.0, 3)):
        work = tmp_path / name / "work"
        work.mkdir(parents=True)
        (tmp_path / name / "temporary").mkdir()
        (work / "x.json").write_text(json.dumps({"fields": [value], "seconds": seconds, "digest": f"{value}{seconds}"}))
    one, two, other = (kill_tries.contents(tmp_path / name, ("seconds",)) for name in "abc")
    assert kill_tries.difference(one, two) is None
    assert kill_tries.difference(one, other) == "/x.json/fields[0]: 1.0 and 2.0"
    assert kill_tries.difference({"x": 1}, {}) == "/x is in one alone"
    assert kill_tries.left(tmp_path / "a") == []
    (tmp_path / "a" / "work" / "x.json.partial").write_text("")
    (tmp_path / "a" / "temporary" / "odd").write_text("")
    assert kill_tries.left(tmp_path / "a") == ["temporary/odd", "work/x.json.partial"]
