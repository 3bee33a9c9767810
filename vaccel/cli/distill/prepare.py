"""``vaccel distill prepare``: clips and captions to training data."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer

from ..console import PATIENCE, Bar, clear_errors, say
from ..loading import Loaded
from ..options import Call, Dtype, Pipeline


def prepare(
    pipeline: Pipeline = "demo",
    data: Annotated[
        str, typer.Option(help="Folder of clips with metadata.jsonl or a .txt each; 'demo' draws moving shapes.")
    ] = "demo",
    out: Annotated[Path, typer.Option(help="Folder to write, or to resume.")] = Path("distill-data"),
    count: Annotated[int | None, typer.Option(min=1, help="Largest number of clips (demo: 1024).")] = None,
    seed: Annotated[int, typer.Option(help="Of the drawn clips.")] = 0,
    frames: Annotated[int, typer.Option(min=1, help="Frames a clip.")] = 81,
    height: Annotated[int, typer.Option(min=16)] = 480,
    width: Annotated[int, typer.Option(min=16)] = 832,
    negative: Annotated[str | None, typer.Option(help="Negative prompt of the unconditional branch.")] = None,
    call: Call = None,
    dtype: Dtype = "float32",
) -> None:
    """Write clips' latents and prompts' embeddings as safetensors shards. Resumable: run it again after Ctrl-C."""
    from ...distill import demo_clips, video_folder
    from ...distill import prepare as run

    with clear_errors(f"{out} keeps what was written; the same command resumes it"):
        from ...distill.outputs import check_folder

        check_folder(out)
        loaded = Loaded(pipeline, None, call, dtype)
        if data == "demo":
            count = count or 1024
            clips = demo_clips(count, seed)
        else:
            clips = video_folder(data, frames=frames, height=height, width=width)
            sizes = {"num_frames": frames, "height": height, "width": width}
            known = inspect.signature(type(loaded.pipe).__call__).parameters
            loaded.call = {k: v for k, v in sizes.items() if k in known} | loaded.call
        with Bar(every=PATIENCE) as bar:
            index = run(
                loaded.pipe, clips, out, call=loaded.call, negative_prompt=negative, total=count, progress=bar.update
            )
    say(f"{out}: {index['count']} samples in {len(index['shards'])} shards")
