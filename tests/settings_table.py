"""Runs the matrix of settings and writes the table of docs/settings.md and its JSON.

    python tests/settings_table.py [--only WORD ...] [--processes 2] [--table]

A line for every setting and pipeline as it is done; what an interrupted run has found is kept in out/settings and not
run again (``--fresh`` forgets it).  ``--table`` writes the page from the JSON that is there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from kept import run_kept  # noqa: E402

KEPT = ROOT / "out" / "settings"
JSON = ROOT / "bench" / "results" / "cpu" / "settings.json"
PAGE = ROOT / "docs" / "settings.md"
BEGIN, END = "<!-- settings -->", "<!-- end -->"
VERSIONS = ("torch", "diffusers", "accelerate", "peft", "torchao", "bitsandbytes", "gguf")
TITLES = {"wan": "Wan", "flux": "Flux", "sd": "UNet", "clip": "Wan, decoded"}


def quiet() -> None:
    import logging
    import warnings

    import torch

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def examined(name: str, pipe: str) -> dict[str, Any]:
    """What is found of a setting on one pipeline, as plain data."""
    import dataclasses

    from settings import load_all
    from settings.runner import cells

    began, setting = time.perf_counter(), load_all()[name]
    found: dict[str, Any] = {"setting": name, "pipe": pipe, "missing": setting.missing, "cells": []}
    if not setting.missing:
        try:
            found["cells"] = [dataclasses.asdict(cell) for cell in cells(setting, pipe)]
        except Exception as error:  # of the plain pipeline under the setting: the others go on
            said = f"{type(error).__name__}: {error}"
            wrong = {"setting": name, "pipe": pipe, "order": "-", "method": "-", "outcome": "wrong", "said": said}
            found["cells"] = [wrong]
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="settings whose name or group has one of these words; by default all")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--fresh", action="store_true", help="run again what was run before")
    parser.add_argument("--table", action="store_true", help="the page alone, from the JSON that is there")
    options = parser.parse_args()
    if options.table:
        page(json.loads(JSON.read_text()))
        return
    quiet()
    from settings import load_all

    chosen = [
        (name, pipe)
        for name, setting in load_all().items()
        if not options.only or any(word in f"{setting.group} {name}" for word in options.only)
        for pipe in setting.pipes
    ]
    done = run_kept(
        {_key(*one): one for one in chosen}, examined, KEPT, processes=options.processes, fresh=options.fresh,
        initializer=quiet, told=_told,
    )  # fmt: skip
    every = [done[_key(*one)] for one in chosen]
    if not options.only:
        write(every)
    wrong = [cell for found in every for cell in found["cells"] if cell["outcome"] == "wrong"]
    if wrong:
        sys.exit("\n".join(" ".join(f"{value}" for value in cell.values()) for cell in wrong))


def _key(name: str, pipe: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in f"{name} {pipe}")


def _told(found: dict[str, Any]) -> str:
    outcomes = dict(Counter(cell["outcome"] for cell in found["cells"])) or f"needs {found['missing']}"
    return f"{found['setting']}, {found['pipe']}: {outcomes}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def write(every: list[dict[str, Any]]) -> None:
    """The JSON with commit and versions, and the table."""
    from settings import load_all

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    known = load_all()
    data = {
        "command": "python tests/settings_table.py",
        "commit": commit,
        "versions": {name: _version(name) for name in VERSIONS},
        "counts": dict(Counter(cell["outcome"] for found in every for cell in found["cells"])),
        "settings": [
            {"name": name, "group": known[name].group, "recipe": known[name].recipe, "orders": list(known[name].orders),
             "missing": known[name].missing, "pipes": {f["pipe"]: _outcomes(f) for f in every if f["setting"] == name}}
            for name in dict.fromkeys(found["setting"] for found in every)
        ],
    }  # fmt: skip
    JSON.write_text(json.dumps(data, indent=1) + "\n")
    page(data)


def _outcomes(found: dict[str, Any]) -> dict[str, Any]:
    """Outcome -> order -> methods; and what is said where it is not right."""
    made: dict[str, dict[str, list[str]]] = {}
    for cell in found["cells"]:
        made.setdefault(cell["outcome"], {}).setdefault(cell["order"], []).append(cell["method"])
    said = sorted({cell["said"] for cell in found["cells"] if cell["said"]})
    return {**made, **({"said": said} if said else {})}


def page(data: dict[str, Any]) -> None:
    """The generated part of docs/settings.md."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(data)}{END}{after}")


def table(data: dict[str, Any]) -> str:
    counts = data["counts"]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items() if version)
    lines = [
        f"**{counts.get('right', 0)} cells right, {counts.get('refused', 0)} refused with the way out, "
        f"{counts.get('wrong', 0)} wrong.**",
        "",
        f"Made by `{data['command']}` at commit {data['commit'][:10]} ({versions}); "
        "`bench/results/cpu/settings.json` has every cell.",
        "",
    ]
    for group in dict.fromkeys(one["group"] for one in data["settings"]):
        mine = [one for one in data["settings"] if one["group"] == group]
        pipes = [pipe for pipe in TITLES if any(pipe in one["pipes"] for one in mine)]
        lines += [f"### {group}", "", f"| setting | {' | '.join(TITLES[p] for p in pipes)} | orders | how |"]
        lines.append(f"| --- |{' --- |' * len(pipes)} --- | --- |")
        for one in mine:
            cells = [_cell(one["pipes"].get(pipe), one["missing"]) for pipe in pipes]
            how = one["recipe"].replace("|", "\\|")
            how = f"`{how}`" if any(c in how for c in "(=._") else how
            lines.append(f"| {one['name']} | {' | '.join(cells)} | {', '.join(one['orders'])} | {how} |")
        lines.append("")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None, missing: list[str]) -> str:
    if found is None:
        return ""
    if missing:
        return f"needs {', '.join(missing)}"
    names = [name for name in ("right", "refused", "wrong") if name in found]
    return ", ".join(f"{sum(map(len, found[name].values()))} {name}" for name in names)


if __name__ == "__main__":
    main()
