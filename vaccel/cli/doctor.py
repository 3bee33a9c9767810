"""``vaccel doctor``: what is installed, built and usable here."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from .console import console


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """What is installed, built and usable here."""
    from .environment import diagnose

    found = diagnose()
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in found.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                shown = {None: "not installed", True: "yes", False: "no"}.get(inner, inner)
                table.add_row(f"[bold]{key}[/bold] {name}", str(shown))
        else:
            table.add_row(f"[bold]{key}[/bold]", str(value))
    console.print(table)
