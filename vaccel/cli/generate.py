"""``vaccel generate``: one clip, and the trace of what was computed for it."""

from __future__ import annotations

import shlex
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .batch import Asked, batch
from .cluster import Cluster, Gpus, Ray, Workers
from .completion import after, methods
from .console import clear_errors, followed_by, leave, refuse, say
from .loading import Loaded, automatic, contender
from .options import Call, Dtype, PromptFile, Small, Steps, prompts_of

FORMATS = (".mp4", ".gif", ".png", ".webp")


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the clip shows.")] = None,
    pipeline: Annotated[str, typer.Option(help="Pipeline folder or hub name; 'demo' is the shipped family.")] = "demo",
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            autocompletion=methods,
            help="As it would be called, such as 'TeaCache(artifact='teacache.json', threshold=0.1)'; 'steps(50)' is "
            "the full model. Without: Auto, as fast as a difference to the full model cannot be seen.",
        ),
    ] = None,
    prompts: PromptFile = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .mp4, .gif or .png (animated); with --prompts a folder.",
            show_default="clip.mp4, or the folder clips",
        ),
    ] = None,
    small: Small = None,
    steps: Steps = 50,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    call: Call = None,
    fps: Annotated[int, typer.Option(min=1, help="Frames a second.")] = 12,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the transformers.")] = False,
    dtype: Dtype = "float32",
    measure: Annotated[
        bool, typer.Option("--measure", help="With --prompts: make every clip by the full model too, and compare.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="JSON of what was computed, for `vaccel explain`.", show_default="OUT's name with .trace.json"
        ),
    ] = None,
    ray: Ray = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
) -> None:
    """Write one clip, and the trace of what was computed for it (`vaccel explain` draws it).

    With --prompts a clip for every line of the file, into a folder, with a manifest.jsonl of what was made and how; the
    same command goes on where one was stopped; with --ray on many machines. Exit status: 1 where a clip failed, 2 for
    input that cannot be used.
    """
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give one prompt, or --prompts FILE for many", param_hint="PROMPT")
    if prompts is not None:
        if trace is not None:
            raise typer.BadParameter("the timelines of many clips are in their manifest", param_hint="--trace")
        lines = prompts_of(None, prompts, None)
        asked = Asked(pipeline, method, small, call, dtype, steps, seed, fps, compile, measure)
        return batch(lines, out or Path("clips"), asked, Cluster(ray, workers, gpus_per_worker).checked())
    if ray is not None or workers is not None or gpus_per_worker is not None:
        raise typer.BadParameter("is for --prompts: one clip is made by one pipeline", param_hint="--ray")
    if measure:
        raise typer.BadParameter("is for --prompts; `vaccel compare` measures one", param_hint="--measure")
    import torch

    from ..evaluate.clips import frames_of

    out = out or Path("clip.mp4")
    check_place(out)
    with clear_errors("nothing was written"):
        if trace is not None:
            check_trace(trace, out)
        loaded = Loaded(pipeline, small, call, dtype)
        text = method or automatic(loaded.folder, demo=pipeline == "demo")
        chosen = contender(text, loaded.folder, pipeline, steps)
        if trace is not None and chosen.kind != "vaccel":
            raise typer.BadParameter(f"{text} leaves no trace", param_hint="--trace")
        if chosen.needs_small and loaded.small is None:
            raise typer.BadParameter(f"{text} needs a small model too: pass --small FOLDER", param_hint="--method")
        if not method:
            say(f"{text}, as no --method is given: as fast as a difference to the full model cannot be seen")
        arguments = {"num_inference_steps": steps, **loaded.call, "generator": torch.Generator().manual_seed(seed)}
        if chosen.num_steps:
            arguments["num_inference_steps"] = chosen.num_steps
        start = time.perf_counter()
        say("sampling")
        with (
            followed_by(after(text, pipeline, steps)),
            chosen.applied(loaded.pipe, loaded.small, compile=compile) as handle,
        ):
            output = loaded.pipe(prompt, **arguments)
        seconds = time.perf_counter() - start
        written = write_somewhere(out, frames_of(output), fps)
    say(f"{written}  {seconds:.2f} s")
    if handle is None:
        say("no trace: nothing of vaccel ran", "dim")
    else:
        told(handle, trace or written.with_suffix(".trace.json"))
    if written != out:
        leave(1)


def told(handle: Any, place: Path) -> None:
    """Prints what was computed and what Auto said of it, and writes the trace; a clip is made all the same where that
    cannot be written."""
    traces = handle.traces
    say(str(traces[-1]))
    for note in traces[-1].notes:
        if note.startswith("Auto:"):
            say(note)
    if len(traces) > 1:
        say(f"the pipeline ran {len(traces)} loops; this is the last one's")
    try:
        traces[-1].save(place)
    except OSError as error:
        say(f"the trace was not written: {error}", "yellow")
        return
    say(f"trace: vaccel explain {shlex.quote(str(place))}")


def check_trace(place: Path, out: Path) -> None:
    """Raises ``ValueError`` or ``OSError`` where a trace could not be written, before a clip is made."""
    from ..planning import files

    if place.resolve() == out.resolve():
        raise typer.BadParameter("it is the clip's own file", param_hint="--trace")
    files.check(place)


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
