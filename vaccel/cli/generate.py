"""``vaccel generate``: one clip, and the timeline of what was computed for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .console import console, refuse
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
    import numpy as np
    import torch

    from ..evaluate import parse_contender
    from ..evaluate.clips import write_video

    if out.suffix not in FORMATS:
        raise typer.BadParameter("write to .mp4, .gif, .png or .webp", param_hint="--out")
    try:
        loaded = Loaded(pipeline, small, call, dtype)
        contender = parse_contender(method, loaded.folder) if method else None
        arguments = {"num_inference_steps": steps, **loaded.call, "generator": torch.Generator().manual_seed(seed)}
        if contender is not None and contender.num_steps:
            arguments["num_inference_steps"] = contender.num_steps
        start = time.perf_counter()
        with console.status("sampling"):
            if contender is None:
                frames, handle = loaded.pipe(prompt, **arguments).frames, None
            else:
                with contender.applied(loaded.pipe, loaded.small, compile=compile) as handle:
                    frames = loaded.pipe(prompt, **arguments).frames
    except (ValueError, OSError) as error:
        refuse(error)
    seconds = time.perf_counter() - start
    out.parent.mkdir(parents=True, exist_ok=True)
    write_video(out, np.asarray(frames[0], dtype=np.float32), fps)
    console.print(f"{out}  {seconds:.2f} s")
    if handle is not None:
        console.print(str(handle.trace), highlight=False)
