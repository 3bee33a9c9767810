"""The command line: ``vaccel demo | generate | compare | calibrate | distill | doctor``.  One file a command.

Only ``typer`` and ``rich`` are imported here and at the top of the commands' files; a command imports what it runs when
it runs, so that ``vaccel --help`` does not wait for torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from . import calibrate, compare, demo, distill, doctor, generate

app = typer.Typer(no_args_is_help=True, help="Diffusion video generation several times faster, faithful to the model.")


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        print(f"vaccel {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Diffusion video generation several times faster, faithful to the model."""


app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
app.command("compare")(compare.compare)
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(distill.app, name="distill")
app.command("doctor")(doctor.doctor)
