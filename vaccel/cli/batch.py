"""``vaccel generate --prompts``: many clips into a folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

import typer

from .cluster import Cluster, anywhere, crew_of, threads
from .completion import after
from .console import Bar, clear_errors, followed_by, leave, say
from .loading import Loaded, automatic, contender

#: Of a batch's clips.
SUFFIX = ".mp4"


class Asked(NamedTuple):
    """What the command's options say of every clip."""

    pipeline: str
    method: str | None
    small: str | None
    call: list[str] | None
    dtype: str
    steps: int
    seed: int
    fps: int
    compile: bool
    measure: bool


def batch(prompts: list[str], out: Path, asked: Asked, cluster: Cluster) -> None:
    """A clip for every prompt that has none in the folder yet.  Ends the command with 1 where one failed."""
    from ..planning import files

    kept = f"{out} keeps what was made, the same command goes on"
    with clear_errors(kept), Bar() as bar:
        if out.exists() and not out.is_dir():
            raise typer.BadParameter(f"{out} is a file; many clips go into a folder", param_hint="--out")
        files.check(out / "manifest.jsonl")
        bar.update(0, len(prompts), "loading")
        from ..batch import alone

        with alone(out):
            (_here if cluster.address is None else _on_ray)(prompts, out, asked, cluster, bar)


def _here(prompts: list[str], out: Path, asked: Asked, cluster: Cluster, bar: Bar) -> None:
    """In this process."""
    from ..batch import Making, Manifest, header_of, make_all

    loaded = Loaded(asked.pipeline, asked.small, asked.call, asked.dtype)
    text = asked.method or automatic(loaded.folder, demo=asked.pipeline == "demo")
    chosen = _chosen(text, loaded.folder, asked)
    if chosen.needs_small and loaded.small is None:
        raise typer.BadParameter(f"{text} needs a small model too: pass --small FOLDER", param_hint="--method")
    arguments = {**loaded.call, "num_inference_steps": asked.steps}
    options = {"small": loaded.small, "fps": asked.fps, "measure": asked.measure, "compile": asked.compile}
    manifest = Manifest(out, header_of(loaded.pipe, arguments, chosen.key, asked.fps), SUFFIX)
    jobs, there = _jobs(manifest, prompts, asked)
    with (
        followed_by(after(text, asked.pipeline, asked.steps)),
        Making(loaded.pipe, chosen, arguments, **options) as making,
    ):
        done = make_all(making, manifest, jobs, bar.update)
    _told(done, there, manifest)


def _on_ray(prompts: list[str], out: Path, asked: Asked, cluster: Cluster, bar: Bar) -> None:
    """By workers on a cluster; nothing is computed here."""
    from ..batch import Manifest
    from ..cluster.clips import options_of
    from ..cluster.making import make_all
    from ..cluster.messages import Setup

    folder = _shipped() if asked.pipeline == "demo" else Path.cwd()
    text = asked.method or automatic(folder, demo=asked.pipeline == "demo")
    chosen = _chosen(text, folder, asked)
    told, attached = options_of(chosen, fps=asked.fps, measure=asked.measure, compile=asked.compile)

    def setup(share: int) -> Setup:
        return Setup("clips", anywhere(asked.pipeline), asked.steps, anywhere(asked.small), asked.call or [],
                     asked.dtype, threads(), share, told, attached)  # fmt: skip

    def looking(what: str) -> None:
        bar.update(0, len(prompts), what)

    with crew_of(cluster, setup, len(prompts), looking) as crew:
        manifest = Manifest(out, crew.ready.fingerprint, SUFFIX)
        jobs, there = _jobs(manifest, prompts, asked)
        done = make_all(crew, manifest, jobs, chosen.label, bar.update)
    _told(done, there, manifest)


def _shipped() -> Path:
    from ..demo import family

    return family.shipped_folder()


def _chosen(text: str, folder: Path, asked: Asked) -> Any:
    """What ``--method`` names."""
    chosen = contender(text, folder, asked.pipeline, asked.steps)
    if asked.measure and (chosen.kind != "vaccel" or chosen.method.experts is not None):
        raise typer.BadParameter(f"{text} is for `vaccel compare` to measure", param_hint="--measure")
    return chosen


def _jobs(manifest: Any, prompts: list[str], asked: Asked) -> tuple[list[Any], int]:
    """The clips that there are to be, and how many there are."""
    from ..batch import jobs_of

    for note in manifest.notes:
        say(note, "yellow")
    jobs = jobs_of(prompts, asked.seed)
    there = sum(map(manifest.finished, jobs))
    if there:
        say(f"{there} of {len(jobs)} clips are there already")
    return jobs, there


def _told(done: list[Any], there: int, manifest: Any) -> None:
    failed = [each for each in done if each.error]
    for each in failed:
        say(f"{each.job.prompt!r} failed: {each.error}", "red")
    say(f"{len(done) - len(failed)} clips made, {there} were there: {shlex.quote(str(manifest.path))}")
    if failed:
        leave(1)
