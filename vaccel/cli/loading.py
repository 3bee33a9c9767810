"""The pipeline that a command works on."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .completion import after
from .console import followed_by
from .options import DTYPES, assignment, check_call, one_of


class Loaded:
    """A pipeline, moved to the GPU where there is one.

    Args:
        name: "demo" for the shipped family, or a pipeline's folder or hub name.
        small: folder of the small transformer, or of a pipeline that holds it.
        call: arguments of the pipeline's call, as "name=value".
        dtype: of the weights: "float32", "bfloat16" or "float16".
        device: where to move it instead.

    Attributes:
        pipe, small: the pipeline, and the small transformer or None.
        call: arguments of the pipeline's call.
        folder: where contenders look for their artifacts.
        checker: (clip, prompt) -> scores, for the shipped family; else None.

    Raises ``typer.BadParameter`` for an unknown dtype or malformed ``call``; loading errors are diffusers' own.
    """

    def __init__(self, name: str, small: str | None, call: list[str] | None, dtype: str, device: str | None = None):
        import torch

        from ..models.denoisers import denoisers_of

        one_of("--dtype", dtype, DTYPES)
        kind = getattr(torch, dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.checker: Callable[[Any, str], dict[str, float]] | None = None
        if name == "demo":
            from ..demo import family as demo

            family = demo.load(dtype=kind)
            self.pipe, self.small, self.call = family.pipe, family.small, family.call
            self.folder, self.checker = family.folder, _caption_score
        else:
            from diffusers import DiffusionPipeline

            with followed_by(f"vaccel doctor --pipeline {shlex.quote(name)}"):
                self.pipe = DiffusionPipeline.from_pretrained(name, dtype=kind)
            self.pipe.set_progress_bar_config(disable=True)
            self.small, self.call, self.folder = None, {}, Path.cwd()
        if small is not None:
            attribute, model = next(iter(denoisers_of(self.pipe).items()), (None, None))
            if model is None:
                raise ValueError(f"{name} has no denoiser that a small one could stand beside")
            sub = {"subfolder": attribute} if (Path(small) / attribute).is_dir() else {}
            self.small = type(model).from_pretrained(small, dtype=kind, **sub).eval()
        self.pipe.to(device)
        if self.small is not None:
            self.small.to(device)
        given = dict(assignment(text) for text in call or ())
        check_call(self.pipe, given)
        self.call |= given


def contender(text: str, folder: Path, pipeline: str, steps: int) -> Any:
    """What ``--method`` names, with its artifacts in ``folder``.  Raises as ``parse_contender``, with what to type."""
    from ..evaluate import parse_contender

    with followed_by(after(text, pipeline, steps)):
        return parse_contender(text, folder)


def automatic(folder: Path, *, demo: bool) -> str:
    """The method where none is named, as it is written: ``accelerate``'s own, with the calibration of the demo's."""
    from ..methods.auto import VISIBLE

    calibrated = demo and (folder / "forecast.json").is_file()
    known = "artifact='forecast.json', " if calibrated else ""
    return f"Auto({known}psnr={VISIBLE:g})"


def _caption_score(clip: Any, prompt: str) -> dict[str, float]:
    from ..demo.checker import check

    return {"caption": float(check(clip, prompt).correct)}
