"""``vaccel generate``: one clip, and the timeline of what was computed for it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import clear_errors, leave, refuse, say
from .loading import Loaded
from .options import Call, Dtype, Small, Steps

FORMATS = (".mp4", ".gif", ".png", ".webp")


def generate(
    prompt: Annotated[str, typer.Argument(help="What the clip shows.")],
    pipeline: Annotated[str, typer.Option(help="Pipeline folder or hub name; 'demo' is the shipped family.")] = "demo",
    method: Annotated[str | None, typer.Option("--method", "-m", help="As it would be called.")] = None,
    out: Annotated[Path, typer.Option(help="File to write: .mp4, .gif or .png (animated).")] = Path("clip.mp4"),
    small: Small = None,
    steps: Steps = 50,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    call: Call = None,
    fps: Annotated[int, typer.Option(min=1, help="Frames a second.")] = 12,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the transformers.")] = False,
    dtype: Dtype = "float32",
) -> None:
    """Write one clip and print the timeline of what was computed (without --method, by the full model)."""
    import torch

    from ..evaluate import parse_contender
    from ..evaluate.clips import frames_of

    check_place(out)
    with clear_errors("nothing was written"):
        loaded = Loaded(pipeline, small, call, dtype)
        contender = parse_contender(method, loaded.folder) if method else None
        arguments = {"num_inference_steps": steps, **loaded.call, "generator": torch.Generator().manual_seed(seed)}
        if contender is not None and contender.num_steps:
            arguments["num_inference_steps"] = contender.num_steps
        start = time.perf_counter()
        say("sampling")
        if contender is None:
            output, handle = loaded.pipe(prompt, **arguments), None
        else:
            with contender.applied(loaded.pipe, loaded.small, compile=compile) as handle:
                output = loaded.pipe(prompt, **arguments)
        seconds = time.perf_counter() - start
        written = write_somewhere(out, frames_of(output), fps)
    say(f"{written}  {seconds:.2f} s")
    if handle is not None:
        say(str(handle.trace))
    if written != out:
        leave(1)


def check_place(out: Path) -> None:
    """Ends the command where a clip could not be written, before one is made."""
    from ..planning import files

    if out.suffix.lower() not in FORMATS:
        raise typer.BadParameter("write to .mp4, .gif, .png or .webp", param_hint="--out")
    try:
        if not out.exists() or out.is_file() or out.is_dir():
            files.check(out.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a symlink to itself; a name with a null byte
        refuse(error)


def write_somewhere(out: Path, clip: Any, fps: int) -> Path:
    """Writes the clip where it was asked for, or else in the folder for temporary files: it took long to make.

    Returns the path.  Raises ``OSError`` where neither can be written.
    """
    from ..evaluate.clips import write_video

    try:
        write_video(out, clip, fps)
        return out
    except Exception as error:
        said = f"{out} could not be written: {error}"
    spare = Path(tempfile.mkdtemp(prefix="vaccel-clip-")) / f"{out.stem}{out.suffix}"
    try:
        write_video(spare, clip, fps)
    except Exception as error:
        raise OSError(f"{said}; nor could {spare}: {error}") from None
    say(f"{said}; the clip is in", "red")
    return spare
