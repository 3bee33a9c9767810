"""Turns pytest-benchmark's JSON of the kernels into the table's: ``python bench/collect.py out/kernels.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from results import write

COMMAND = (
    "pytest bench/bench_*.py --ignore=bench/bench_overhead.py --ignore=bench/bench_schedules.py "
    "--benchmark-json=FILE && python bench/collect.py FILE"
)


def rows(benchmarks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an op, shape and dtype: microseconds of each contender (median, quartiles), GB/s of the default."""
    found: dict[tuple, dict[str, Any]] = {}
    for measured in benchmarks:
        info, stats = measured["extra_info"], measured["stats"]
        key = info["op"], info["shape"], info["dtype"].removeprefix("torch.")
        row = found.setdefault(key, {"op": key[0], "shape": key[1], "dtype": key[2], "elements": info["elements"]})
        row[info["contender"]] = {name: round(stats[name] * 1e6, 2) for name in ("median", "q1", "q3")}
        if "device_us" in info:
            row[info["contender"]]["device"] = round(info["device_us"], 2)
            row["copy_device"] = round(info["copy_device_us"], 2)
        if "copy_gb_s" in info and info["contender"] == "default":
            speed = info["bytes"] / stats["median"] / 1e9
            row |= {"gb_s": round(speed, 2), "of_copy": round(speed / info["copy_gb_s"], 3)}
    return list(found.values())


def main() -> None:
    measured = json.loads(Path(sys.argv[1]).read_text())["benchmarks"]
    device = measured[0]["extra_info"]["device"]
    path = write("kernels", {"unit": "us", "rows": rows(measured)}, device, COMMAND)
    print(f"{len(measured)} measurements written to {path}")


if __name__ == "__main__":
    main()
