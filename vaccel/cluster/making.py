"""Clips by workers: the driver alone writes them and the manifest, each whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..batch.making import Made, Progress
from ..batch.manifest import Job, Manifest
from ..planning import files
from . import messages
from .crew import Crew, Done
from .messages import Clip, Task


def make_all(
    crew: Crew, manifest: Manifest, jobs: Sequence[Job], method: str, progress: Progress = lambda *_: None
) -> list[Made]:
    """Makes what is not there yet, one clip a worker at a time; returns the jobs that were run.

    A clip that fails is told of and the others are made all the same.

    Args:
        crew: open.
        method: as the manifest names it.

    Raises ``OSError`` where the folder cannot be written, ``KeyboardInterrupt``, and ``crew.CrewError``: clips that are
    finished are in the manifest then, those too that workers had ready.
    """
    manifest.folder.mkdir(parents=True, exist_ok=True)
    todo = {job.number: job for job in jobs if not manifest.finished(job)}
    found: list[Made] = []

    def keep(done: Done) -> None:
        job = todo[done.key]
        if not manifest.finished(job):  # what was stopped half way through is kept once more
            found.append(_kept(manifest, job, done, method))

    def looking(key: Any) -> None:
        what = todo[key].prompt if key is not None else "waiting for workers"
        progress(len(jobs) - len(todo) + len(found), len(jobs), what)

    tasks = [(number, messages.write(Task(job.prompt, job.seed))) for number, job in todo.items()]
    taken(crew.do(tasks, looking=looking), keep, crew)
    progress(len(jobs), len(jobs), "done")
    return found


def taken(over: Any, keep: Callable[[Done], None], crew: Crew) -> None:
    """Keeps every task that is over; on Ctrl-C also those that nobody has asked for yet."""
    try:
        for done in over:
            keep(done)
    except KeyboardInterrupt:
        for done in crew.rest():
            if not done.error:
                keep(done)
        raise


def _kept(manifest: Manifest, job: Job, done: Done, method: str) -> Made:
    """Writes a clip and its line.  What it is called is the driver's affair alone."""
    error, said = done.error, {}
    if not error:
        try:
            clip = messages.read(done.data, Clip)
            said = clip.said()
            if clip.content[4:8] != b"ftyp":
                raise ValueError("it is no MP4 file")
        except ValueError as refused:
            error = f"its worker sent no clip: {messages.shown(str(refused), 300)}"
    if error:
        manifest.add(job, error=error[:500])
        return Made(job, {"error": error[:500]}, error)
    path = manifest.folder / manifest.name(job)
    with files.replacing(path, path.suffix) as partial:
        partial.write_bytes(clip.content)
    said = {"file": path.name, "method": method, **said}
    manifest.add(job, **said)
    return Made(job, said)
