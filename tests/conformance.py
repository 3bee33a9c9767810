"""Runs every pipeline of the zoo and writes the table of docs/pipelines.md and its JSON.

    python tests/conformance.py [--only NAME ...] [--processes 2]

A line for every pipeline as it is done; what an interrupted run has found is kept in out/conformance and not run again
(``--fresh`` forgets it).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from kept import run_kept  # noqa: E402

KEPT = ROOT / "out" / "conformance"


def quiet() -> None:
    import logging
    import warnings

    import torch

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def examined(name: str) -> dict[str, Any]:
    """What is found of one pipeline, as plain data."""
    from zoo import load_all
    from zoo.check import check, check_batch, check_guidance_ends, check_without_guidance
    from zoo.known import KNOWN
    from zoo.memory import check_memory
    from zoo.methods import check_methods, described

    from vaccel.models import find
    from vaccel.models.denoisers import main_denoiser

    case, began = load_all()[name], time.perf_counter()
    found: dict[str, Any] = {"name": name, "modular": case.modular}
    try:
        pipe = case.build()
        module = getattr(pipe, case.denoisers[0]) if case.denoisers else main_denoiser(pipe)
        found |= {"denoiser": type(module).__name__, "family": find(module).name, "described": described(case, pipe)}
        wrong = check(case) or check_without_guidance(case) or check_guidance_ends(case) or check_batch(case)
        found["wrong"] = wrong or check_memory(case)
    except Exception as error:
        found |= {"raises": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    if name in KNOWN:
        found["why"] = KNOWN[name].why
    if "wrong" in found and not found["wrong"]:
        try:
            found["methods"] = check_methods(case)
        except Exception as error:
            found["methods"] = {"all": f"{type(error).__name__}: {error}"}
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of pipelines; by default all")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--fresh", action="store_true", help="run again what was run at this commit")
    options = parser.parse_args()
    quiet()
    from zoo import load_all

    names = options.only or list(load_all())
    done = run_kept(
        {name: (name,) for name in names}, examined, KEPT, processes=options.processes, fresh=options.fresh,
        initializer=quiet,
        told=lambda found: f"{found['name']}: {found.get('raises') or '; '.join(found['wrong']) or 'right'}",
    )  # fmt: skip
    if not options.only:
        write([done[name] for name in names])
    bad = [n for n in names if not right(done[n]) and "why" not in done[n]]
    if bad:
        sys.exit(f"not right, and not known to be: {', '.join(bad)}")


def right(found: dict[str, Any]) -> bool:
    return "raises" not in found and not found["wrong"]


def write(found: list[dict[str, Any]]) -> None:
    """The JSON with commit and versions, and the table."""
    import diffusers
    import torch

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    head = {
        "command": "python tests/conformance.py",
        "commit": commit,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    target = ROOT / "bench" / "results" / "cpu" / "conformance.json"
    target.write_text(json.dumps({**head, "pipelines": found}, indent=1) + "\n")
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "pipelines.md").write_text(table(head, found))


def table(head: dict[str, Any], found: list[dict[str, Any]]) -> str:
    """docs/pipelines.md."""
    classes = {one["name"].split("-")[0] for one in found}
    good = {one["name"].split("-")[0] for one in found if right(one)}
    ours = sum(right(one) for one in found)
    tokens = {one["name"].split("-")[0] for one in found if "which token" in one.get("why", "")}
    share = 100 * len(good) / len(classes - tokens)
    lines = [
        "# Pipelines",
        "",
        f"Made by `{head['command']}` (commit {head['commit'][:10]}, diffusers {head['versions']['diffusers']}):",
        "tiny random components of the genuine classes, each pipeline against its own loop with substituted outputs,",
        "bit for bit.",
        "",
        f"**{len(good)} of {len(classes)} pipeline classes are accelerated and right** ({ours} of {len(found)}",
        f"pipelines and variants; {share:.1f} % of those that denoise: {len(tokens)} predict tokens instead). What is",
        "not is said by an error, with its reason in the last column; none runs without an effect.",
        "",
        "*blocks*: a family describes the denoiser, so that methods which reach for its blocks work (residuals of the",
        "block stack, MixCache's block level, TeaCache where the timestep's embedding is described).  *outputs*: it is",
        "seen from outside: Auto, Forecast, EasyCache, Schedule, LeMiCa, MixCache's upper levels, and with a small",
        "model DirectionMagnitude and SRDiffusion.",
        "",
        "| pipeline | denoiser | level | remarks |",
        "| --- | --- | --- | --- |",
    ]
    for one in sorted(found, key=lambda o: (o["modular"], o["name"])):
        level = ("blocks" if one.get("described") else "outputs") if right(one) else "**not**"
        lines.append(f"| {one['name']} | {one.get('denoiser', '')} | {level} | {remarks(one)} |")
    return "\n".join(lines) + "\n"


def remarks(one: dict[str, Any]) -> str:
    said = [one.get("why", "")] if not right(one) else []
    said += [one.get("raises", "")] if not right(one) and "why" not in one else []
    said += one.get("wrong", [])
    said += [f"{method}: {why}" for method, why in one.get("methods", {}).items() if why]
    return "; ".join(s for s in said if s).replace("|", "/").replace("\n", " ")[:300]


if __name__ == "__main__":
    main()
