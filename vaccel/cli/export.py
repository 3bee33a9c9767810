"""``vaccel export``: what was calibrated, in the form that other hosts take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .completion import among
from .console import clear_errors, say

app = typer.Typer(help="Write what was calibrated in the form that other hosts take.", no_args_is_help=True)
STANDS_IN = ("taylorseer", "residual")
Artifact = Annotated[Path, typer.Argument(help="Of `vaccel calibrate forecast` or `lemica`.", exists=True)]
Budget = Annotated[int, typer.Option(min=2, help="How many steps are computed.")]
StandsIn = Annotated[
    str,
    typer.Option(
        help="What cache-dit puts in for skipped steps: taylorseer or residual.", autocompletion=among(STANDS_IN)
    ),
]
FirstBlocks = Annotated[int, typer.Option(min=1, help="Blocks that cache-dit always computes.")]
CALIBRATE = "vaccel calibrate forecast PIPELINE --out forecast.json"


@app.command("cache-dit")
def cache_dit(
    artifact: Artifact,
    budget: Budget,
    out: Annotated[Path, typer.Option(help="File to write, for cache_dit.load_configs.")] = Path("cache_dit.yaml"),
    stands_in: StandsIn = "taylorseer",
    first_blocks: FirstBlocks = 1,
) -> None:
    """Write which steps are computed as cache-dit's steps_computation_mask; SGLang's diffusers backend reads it too.

    What stands in for skipped steps is cache-dit's own, so a calibration's predictions are not of such runs.
    """
    with clear_errors("nothing was written", then=CALIBRATE):
        from ..exports import cache_dit as made
        from ..planning import files

        config = made(artifact, budget, stands_in=stands_in, first_blocks=first_blocks)
        files.write_text(out, json.dumps(config, indent=1) + "\n")  # which is YAML too
    mask = config["cache_config"]["steps_computation_mask"]
    say("".join("F" if computed else "-" for computed in mask))
    say(f"{out}: {sum(mask)} of {len(mask)} steps computed")


@app.command("sglang")
def sglang(
    artifact: Artifact,
    budget: Budget,
    out: Annotated[Path, typer.Option(help="File to write, a variable a line.")] = Path("sglang.env"),
    stands_in: StandsIn = "taylorseer",
    first_blocks: FirstBlocks = 1,
) -> None:
    """Write which steps are computed as the variables that SGLang's own pipelines read: env $(cat FILE) sglang serve.

    For requests of as many steps as were calibrated. What stands in for skipped steps is cache-dit's own, so a
    calibration's predictions are not of such runs.
    """
    with clear_errors("nothing was written", then=CALIBRATE):
        from ..exports import sglang as made
        from ..planning import files

        variables = made(artifact, budget, stands_in=stands_in, first_blocks=first_blocks)
        files.write_text(out, "".join(f"{name}={value}\n" for name, value in variables.items()))
    counts = [variables[f"SGLANG_CACHE_DIT_SCM_{which}_BINS"].split(",") for which in ("COMPUTE", "CACHE")]
    computed, cached = (sum(map(int, each)) for each in counts)
    say(f"{out}: {computed} of {computed + cached} steps computed")
