"""``vaccel generate --prompts``: many clips into a folder."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from .completion import after
from .console import Bar, clear_errors, followed_by, leave, say
from .loading import Loaded, automatic, contender

#: Of a batch's clips.
SUFFIX = ".mp4"


def batch(
    prompts: list[str], out: Path, pipeline: str, method: str | None, small: str | None, call: list[str] | None,
    dtype: str, *, steps: int, seed: int, fps: int, compile: bool, measure: bool,
) -> None:  # fmt: skip
    """A clip for every prompt that has none in the folder yet.  Ends the command with 1 where one failed."""
    from ..planning import files

    kept = f"{out} keeps what was made, the same command goes on"
    with clear_errors(kept), Bar() as bar:
        if out.exists() and not out.is_dir():
            raise typer.BadParameter(f"{out} is a file; many clips go into a folder", param_hint="--out")
        files.check(out / "manifest.jsonl")
        bar.update(0, len(prompts), "loading")
        from ..batch import Making, Manifest, jobs_of, make_all
        from ..models import fingerprints

        loaded = Loaded(pipeline, small, call, dtype)
        text = method or automatic(loaded)
        chosen = contender(text, loaded, pipeline, steps)
        if chosen.needs_small and loaded.small is None:
            raise typer.BadParameter(f"{text} needs a small model too: pass --small FOLDER", param_hint="--method")
        if measure and (chosen.kind != "vaccel" or chosen.method.experts is not None):
            raise typer.BadParameter(f"{text} is for `vaccel compare` to measure", param_hint="--measure")
        arguments = {**loaded.call, "num_inference_steps": steps}
        header = {**fingerprints.header("", loaded.pipe, arguments), "method": chosen.key, "fps": fps}
        manifest, jobs = Manifest(out, header, SUFFIX), jobs_of(prompts, seed)
        for note in manifest.notes:
            say(note, "yellow")
        there = sum(map(manifest.finished, jobs))
        if there:
            say(f"{there} of {len(jobs)} clips are there already")
        options = {"small": loaded.small, "fps": fps, "measure": measure, "compile": compile}
        with followed_by(after(text, pipeline, steps)), Making(loaded.pipe, chosen, arguments, **options) as making:
            done = make_all(making, manifest, jobs, bar.update)
    failed = [each for each in done if each.error]
    for each in failed:
        say(f"{each.job.prompt!r} failed: {each.error}", "red")
    say(f"{len(done) - len(failed)} clips made, {there} were there: {shlex.quote(str(manifest.path))}")
    if failed:
        leave(1)
