"""Clips on a worker: the same pipeline, method and encoder as in one process; the file's bytes are sent."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec

from ..batch.making import Making
from ..batch.manifest import Job, fingerprint_of, header_of
from ..cli.loading import Loaded
from ..evaluate.contenders import Contender, parse_contender
from ..methods.base import method_from_json
from .messages import MOST_CLIP, Attached, Clip, Ready, Setup, Task, write

#: Keys of a method's JSON under which it names calibrations that it reads later.
_NAMED = ("artifact", "artifacts")
#: Bytes of a calibration.
_MOST_ARTIFACT = 2**28


def options_of(
    contender: Contender, *, fps: int, measure: bool, compile: bool
) -> tuple[dict[str, Any], list[Attached]]:
    """What a worker has to be told of a batch, as plain data, and the calibrations that the method reads.

    Raises ``ValueError`` for a calibration that is too large, ``OSError`` for one that cannot be read.
    """
    from ..planning.prior import shipped

    method = contender.method.to_json() if contender.method is not None else None
    paths: list[str] = []
    _replaced(method, lambda path: paths.append(path) or path)
    files = []
    for path in dict.fromkeys(paths):
        if path == str(shipped()):
            files.append(Attached(path, None))
            continue
        if Path(path).stat().st_size > _MOST_ARTIFACT:
            raise ValueError(f"{path} is too large to be sent to workers")
        files.append(Attached(path, Path(path).read_bytes()))
    told = {"label": contender.label, "kind": contender.kind, "group": contender.group, "method": method,
            "num_steps": contender.num_steps, "key": contender.key}  # fmt: skip
    return {"contender": told, "fps": fps, "measure": measure, "compile": compile}, files


def _replaced(value: Any, change: Any, key: str = "") -> Any:
    """A method's JSON with the paths of its calibrations changed."""
    if isinstance(value, dict):
        return {name: _replaced(inner, change, name) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(inner, change, key if key == "artifacts" else "") for inner in value]
    return change(value) if key in _NAMED and isinstance(value, str) and value else value


class Clips:
    """A pipeline with its method, for as long as the worker lives.

    Args:
        setup: as ``options_of`` made it.
        files: where the calibrations are, by their paths on the driver.
    """

    def __init__(self, setup: Setup, files: dict[str, str]):
        told = setup.options["contender"]
        loaded = Loaded(setup.pipeline, setup.small, setup.call, setup.dtype)
        chosen = _contender(told, files)
        if chosen.needs_small and loaded.small is None:
            raise ValueError(f"{chosen.label} needs a small model too: pass --small FOLDER")
        arguments = {**loaded.call, "num_inference_steps": setup.steps}
        fps = setup.options["fps"]
        self.ready = Ready(fingerprint=fingerprint_of(header_of(loaded.pipe, arguments, told["key"], fps)))
        self._making = Making(
            loaded.pipe, chosen, arguments, small=loaded.small, fps=fps, measure=setup.options["measure"],
            compile=setup.options["compile"],
        ).__enter__()  # until the process ends  # fmt: skip

    def make(self, task: Task) -> bytes:
        """A ``Clip``.  Raises whatever the pipeline raises, and ``OSError`` where there is no room for the file."""
        with tempfile.TemporaryDirectory(prefix="vaccel-clip-") as folder:
            path = Path(folder) / "clip.mp4"
            said = self._making.make(Job(0, task.prompt, task.seed), path)
            if path.stat().st_size > MOST_CLIP:
                raise ValueError(f"the clip has {path.stat().st_size} bytes, at most {MOST_CLIP} are sent")
            content = path.read_bytes()
        kept = {name: value for name, value in said.items() if name not in ("file", "method")}
        return write(msgspec.convert({**kept, "content": content}, Clip))


def _contender(told: dict[str, Any], files: dict[str, str]) -> Contender:
    """The contender as it was on the driver; diffusers' own caches and numbers of steps are read from their text."""
    if told["kind"] != "vaccel":
        return parse_contender(told["label"])
    method = method_from_json(_replaced(told["method"], lambda path: files.get(path, path)))
    return Contender(told["label"], "vaccel", told["group"], method=method, num_steps=told["num_steps"])
