"""The command line, one file a command: ``vaccel demo | app | generate | compare | explain | calibrate | distill |
doctor``.

Only ``typer`` and ``rich`` are imported here and at the top of the commands' files; a command imports what it runs when
it runs, so that ``vaccel --help`` does not wait for torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from . import calibrate, compare, console, demo, distill, doctor, explain, export, generate, web
from .home import ABOUT, home

app = typer.Typer(help=ABOUT, add_completion=True)


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        print(f"vaccel {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, help=ABOUT)
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    console.command = context.invoked_subcommand or ""
    if context.invoked_subcommand is None:
        home()


app.command("demo")(demo.demo)
app.command("app")(web.web)
app.command("generate")(generate.generate)
app.command("compare")(compare.compare)
app.command("explain")(explain.explain)
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(distill.app, name="distill")
app.add_typer(export.app, name="export")
app.command("doctor")(doctor.doctor)
