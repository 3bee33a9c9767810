"""``vaccel doctor``: what is installed, built and usable here, and what killed processes have left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from .console import console, refuse

if TYPE_CHECKING:
    from ..planning.leftovers import Leftover


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    leftovers: Annotated[
        list[Path] | None,
        typer.Option(
            "--leftovers",
            help="List the files that killed processes left in this folder, in vaccel's cache and in TMPDIR. Repeat "
            "for more folders.",
        ),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Delete those that no running process uses.")] = False,
    unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="With --remove: also what an interrupted calibration would go on from."),
    ] = False,
    certify: Annotated[
        bool,
        typer.Option("--certify", help="Prove the kernels on this machine's GPU, or its CPU, and show what is used."),
    ] = False,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", help="With --certify: a size in use, such as 1x16x21x60x104. Repeat for more."),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compiled", help="With --certify: time torch.compile of the formulas too (takes minutes)."),
    ] = False,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline",
            help="Show what vaccel sees of this pipeline: a folder, or a class of diffusers such as LTXPipeline.",
        ),
    ] = None,
) -> None:
    """What is installed, built and usable here, what killed processes left behind, what is seen of a pipeline."""
    if pipeline is not None:
        _pipeline(pipeline, as_json)
        return
    if certify:
        _certify(as_json, shape or [], compiled)
        return
    if shape or compiled:
        raise typer.BadParameter("it is of --certify: give that too", param_hint="--shape" if shape else "--compiled")
    if unfinished and not remove:
        raise typer.BadParameter("it says what else --remove deletes: give both", param_hint="--unfinished")
    from ..planning.leftovers import find

    try:
        found = find(leftovers or [])
    except ValueError as error:
        refuse(error, then="vaccel doctor --leftovers FOLDER")
    removed = [one for one in found if _removable(one, unfinished) and one.remove()] if remove else []
    if leftovers or remove:
        told = [_told(one, one in removed) for one in found]
        print(json.dumps({"leftovers": told}, indent=1)) if as_json else _list(told)
        return
    _diagnosis(as_json, [_told(one, False) for one in found])


def _pipeline(source: str, as_json: bool) -> None:
    from ..integrations.diffusers.inspection import inspected

    try:
        found = inspected(source)
    except ValueError as error:
        refuse(error, then="vaccel doctor --pipeline WanPipeline (or the folder with model_index.json)")
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row(Text("pipeline", style="bold"), Text(found["pipeline"]))
    for one in found["denoisers"]:
        counts = (f"{b['list']} ({b['blocks']})" if b["blocks"] else b["list"] for b in one["blocks"])
        blocks = ", ".join(counts) or "unknown"
        told = f"{one['class']}, family {one['family']}; blocks: {blocks}; "
        told += f"denoises {one['sample']} at {one['timestep']}"
        table.add_row(Text.assemble(("denoiser ", "bold"), one["attribute"]), Text(told))
    table.add_row(Text("a step is located by", style="bold"), Text("; ".join(found["steps"])))
    table.add_row(Text("guidance", style="bold"), Text(found["guidance"]))
    for name, said in found["methods"].items():
        table.add_row(Text.assemble(("method ", "bold"), name), Text(said))
    console.print(table)


def _certify(as_json: bool, shapes: list[str], compiled: bool) -> None:
    import torch

    from ..certify import certify
    from ..ops import certified
    from ..ops.inner import NAMES
    from .console import Bar, say

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if certified.off():
        refuse(
            ValueError("VACCEL_KERNELS=torch turns the kernels off"),
            then="unset VACCEL_KERNELS; vaccel doctor --certify",
        )
    with Bar(every=5.0) as bar:
        try:
            found = certify(device, shapes=shapes, compiled=compiled, progress=bar.update)
        except ValueError as error:
            refuse(error, then="vaccel doctor --certify --shape 1x16x21x60x104")
        except OSError as error:
            found = error.table
            say(f"the table is not kept, so torch is used: {error}")
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return
    op = Column("op", no_wrap=True)
    table = Table(op, "dtype", "used, by elements", "largest", "kernel us", "torch us", box=None, pad_edge=False)
    if compiled:
        table.add_column("compiled us")
    for name in NAMES:
        for dtype in ("float32", "bfloat16", "float16"):
            if limits := found.limits(name, dtype):
                told = [f"{impl} < {end:.1g}" if end < float("inf") else impl for end, impl in limits]
                table.add_row(name, dtype, ", ".join(told), *_times(found, name, dtype, compiled))
    console.print(table)
    for note in [*found.notes(), *_of_graphs(found.graphs)]:
        console.print(Text(note), soft_wrap=True, highlight=False)


def _times(found: Any, name: str, dtype: str, compiled: bool) -> list[str]:
    """The largest size that was measured, and microseconds there: of the fastest kernel, torch, torch.compile."""
    rows = [r for r in found.rows if (r["op"], r["dtype"], r["passed"]) == (name, dtype, True)]
    if not rows:
        return []
    row = max(rows, key=lambda r: (r["elements"], -r["us"]))
    told = [str(row["elements"]), f"{row['us']:.4g}", f"{row['torch_us']:.4g}"]
    return [*told, f"{row['compiled_us']:.4g}" if row.get("compiled_us") else "-"] if compiled else told


def _of_graphs(found: dict[str, Any] | None) -> list[str]:
    """What certifying found of CUDA graphs; nothing where there are none."""
    if found is None:
        return []
    if not found["passed"]:
        return [f"CUDA graphs: only where asked for: {found['why']}"]
    return [f"CUDA graphs: right; {found['launch_us']:.3g} us a small operation, {found['replay_us']:.3g} us replayed"]


def _removable(one: Leftover, unfinished: bool) -> bool:
    return not one.used and (unfinished or not one.resumable)


def _told(one: Leftover, removed: bool) -> dict[str, Any]:
    """A leftover as plain data."""
    state = (
        "removed" if removed
        else "in use" if one.used
        else "unfinished: the same calibration goes on from it" if one.resumable
        else "left behind"
    )  # fmt: skip
    return {"path": str(one.path), "kind": one.kind, "of": str(one.of), "bytes": one.nbytes, "state": state}


def _list(told: list[dict[str, Any]]) -> None:
    for one in told:
        # one line each, whatever the width: paths are to be copied
        line = Text(f"{one['path']}  {_size(one['bytes'])}  {one['kind']} of {one['of']}  {one['state']}")
        console.print(line, soft_wrap=True, highlight=False)
    stale = [one for one in told if one["state"] == "left behind"]
    gone = [one for one in told if one["state"] == "removed"]
    if gone:
        said = f"{len(gone)} removed, {_size(sum(one['bytes'] for one in gone))}"
    elif stale:
        said = f"{len(stale)} left behind, {_size(sum(one['bytes'] for one in stale))}; --remove deletes them"
    else:
        said = "nothing was left behind"
    console.print(Text(said), soft_wrap=True, highlight=False)


def _size(nbytes: int) -> str:
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB"


def _diagnosis(as_json: bool, told: list[dict[str, Any]]) -> None:
    from .environment import diagnose

    found = diagnose()
    if as_json:
        print(json.dumps({**found, "leftovers": told}, indent=1))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in found.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                shown = {None: "not installed", True: "yes", False: "no"}.get(inner, inner)
                table.add_row(Text.assemble((key, "bold"), f" {name}"), Text(str(shown)))
        else:
            table.add_row(Text(key, style="bold"), Text(str(value)))
    for one in told:
        said = f"{one['path']}  {_size(one['bytes'])}  {one['kind']}, {one['state']}"
        table.add_row(Text("leftovers", style="bold"), Text(said))
    console.print(table)
