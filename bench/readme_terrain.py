"""The README's table of the pretrained terrain model; ``readme.py`` puts it in its place."""

from __future__ import annotations

from readme_forecast import _read, _source, _table
from readme_levels import _dB


def terrain() -> str:
    data = _read("cpu/terrain")
    names = list(data["rows"][0]["psnr"])
    rows = [[str(row["budget"]), *(_dB(row["psnr"][name]) for name in names)] for row in data["rows"]]
    note = f"{len(data['compared'])} terrains, {len(data['recorded'])} others recorded. "
    return _table([f"computed of {data['steps']}", *names], rows) + "\n\n" + note + _source("cpu/terrain", data)
