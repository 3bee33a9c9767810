"""What vaccel costs a step where many requests run at once; ``readme.py`` puts it in its place."""

from __future__ import annotations

from readme_forecast import _read, _source, _table

NAMES = {
    "Schedule F o": "Schedule, last outputs", "Schedule F p": "Schedule, forecasts", "Forecast": "Auto, uncalibrated"
}  # fmt: skip


def soak() -> str:
    """Own processor time by kind of step, beside work that is no part of vaccel."""
    data = _read("cpu/soak")
    steps, generations = data["own"]["steps"], data["own"]["generations"]
    rows = []
    for kind, of in steps["by_kind"].items():
        method, computed = kind.rsplit(", ", 1)
        rows.append([f"{NAMES.get(method, method)}, {computed}", of])
    rows += [[f"*for comparison: {name}*", of] for name, of in data["controls"].items()]
    table = _table(
        ["a step", "us, median", "99th percentile", "times"],
        [[name, f"{of['median_us']:.0f}", f"{of['p99_us']:.0f}", f"{of['times']:.2f}"] for name, of in rows],
    )
    said = (
        f"{data['requests']} requests by {data['threads']} threads, {data['aborted']} of them aborted, "
        f"{len(data['wrong'])} clips wrong. Of all steps, each relative to the median of its kind, the 99th percentile "
        f"is {steps['p99_times_the_median_of_its_kind']:.2f} times; of whole generations "
        f"{generations['p99_times_the_median_of_its_kind']:.2f}. "
    )
    return f"{table}\n\n{said}{_source('cpu/soak', data)}"
