"""kill -9 at random moments: ``python bench/kills.py --tries 100``, or of some jobs: ``--job distill --tries 20``.

Every job that the same command resumes is killed at moments uniform over its duration and run again to its end.  Its
files are compared with an uninterrupted run's, what is left behind is listed, and the model's forwards are counted.
Then two processes write into one artifact.  Results: ``bench/results/cpu/kills.json``, and a table.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import argparse
import functools
import tempfile
from pathlib import Path
from typing import Any

import kill_jobs
import results
from kill_tries import together, tries


def measure(only: list[str], count: int, writers: int, seed: int) -> list[dict[str, Any]]:
    """The rows of all jobs whose name contains one of ``only``."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        base = Path(name)
        kill_jobs.made(base / "shared")
        shared = base / "shared" / "work"
        for job in kill_jobs.jobs(shared):
            if any(part in job.name for part in only) and count:
                rows.append(_safely(job.name, functools.partial(tries, job, base / job.name, count, seed=seed)))
                print(line(rows[-1]), flush=True)
        for job, one, two, both, ranks in kill_jobs.two_writers():
            if any(part in job for part in only) and writers:
                rows.append(
                    _safely(job, lambda a=(job, one, two, both, base / job, writers), r=ranks: together(*a, ranks=r))
                )
                print(line(rows[-1]), flush=True)
    return rows


def _safely(name: str, measured: Any) -> dict[str, Any]:
    try:
        return measured()
    except RuntimeError as error:
        return {"job": name, "tries": 0, "failed": [str(error)]}


def passed(row: dict[str, Any]) -> bool:
    """Whether nothing failed, differed, was left behind or was repeated beyond the unit in progress."""
    return not any(row.get(name) for name in ("failed", "different", "left behind", "over the unit"))


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table, and the first of everything that is wrong."""
    repeated = row.get("repeated")
    told = [f"{row['job']:<28} {row['tries']:>4} tries"]
    if "kills" in row:
        told.append(f"{row['kills']:>4} kills")
    told += [f"{len(row.get(name, []))} {name}" for name in ("failed", "different", "left behind")]
    if repeated:
        told.append(
            f"repeated at most {max(repeated)} of {row['forwards']} forwards, {row['over the unit']} over the unit"
        )
    wrong = [f"\n    {name}: {row[name][0]}" for name in ("failed", "different", "left behind") if row.get(name)]
    return ", ".join([*told, "PASS" if passed(row) else "FAIL"]) + "".join(wrong)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--tries", type=int, default=100, help="kills of every job")
    asked.add_argument("--writers", type=int, default=50, help="tries of two processes on one artifact")
    asked.add_argument("--job", action="append", help="only jobs whose name contains this; repeat for more")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--out", type=Path, help="folder of kills.json instead of bench/results/cpu")
    given = asked.parse_args()
    rows = measure(given.job or [""], given.tries, given.writers, given.seed)
    print(results.write("kills", {"seed": given.seed, "rows": rows}, folder=given.out))
    return 0 if all(map(passed, rows)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
