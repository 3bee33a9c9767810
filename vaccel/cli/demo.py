"""``vaccel demo``: a few clips of the shipped family in full and fast, on one page that begins with the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .compare import end, facts
from .console import Bar, clear_errors, say
from .options import Steps

#: Seconds between two lines of progress where there is no terminal.
EVERY = 3.0


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("out/demo"),
    steps: Steps = 50,
    count: Annotated[int, typer.Option(min=1, max=100, help="How many captions.")] = 3,
    restart: Annotated[bool, typer.Option("--restart", help="Make anew what the folder holds already.")] = False,
) -> None:
    """Look at it: clips by the full model, by Auto and by two of diffusers' caches, side by side.

    The same command goes on where one was stopped. Exit status: 1 where something failed or the end was not reached,
    2 for input that cannot be used.
    """
    from ..built import left_out
    from ..planning import files

    kept = f"{out} keeps what was made, the same command goes on"
    with clear_errors(kept), Bar(every=EVERY, patience=EVERY) as bar:
        files.check(out / "report.html")  # before what takes long to import
        if why := left_out("vaccel._native"):
            say(f"plain torch instead of the native kernels, {why}", "yellow")
        bar.update(0, 0, "loading")

        from ..demo import family
        from ..demo.shapes import held_out_captions
        from ..evaluate import compare, parse_contender
        from ..evaluate.pictures import write_pictures
        from .loading import Loaded

        loaded = Loaded("demo", None, None, "float32")
        result = compare(
            loaded.pipe, [parse_contender(text, loaded.folder) for text in family.SHOWN], held_out_captions(count),
            call={"num_inference_steps": steps, **loaded.call}, checker=loaded.checker, progress=bar.update,
            log=out / "rows.jsonl", restart=restart, metrics=["ssim"], brief=True,
        )  # fmt: skip
        bar.update(1, 1, "writing the page")
        page = write_pictures(result, out, title="vaccel: full and fast, side by side", facts=facts())
    end(result, page, kept)
