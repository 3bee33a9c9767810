"""One clip of a pipeline, told step by step, and ended where it is no longer wanted."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..evaluate.clips import first_of, is_sound
from ..models.denoisers import denoisers_of

#: Told of a run: (steps done, their total).
Told = Callable[[int, int], None]


class Cancelled(Exception):  # noqa: N818 (nothing went wrong)
    """A run was ended because nobody wants it any more."""


def sampled(
    pipe: Any, prompt: str, seed: int, steps: int, call: Mapping[str, Any], tell: Told, stopped: Callable[[], bool]
) -> tuple[np.ndarray, float]:
    """One clip [F, H, W, 3] in [0, 1], an image being a clip of one frame, and the seconds that the call took.

    Args:
        seed: of the noise, drawn on the CPU.
        call: further arguments of the pipeline's call.
        tell: called after every step; of pipelines that tell nothing of their steps, never.
        stopped: asked before the call, and after every step or at every forward; where it is true the call is ended.

    Raises ``Cancelled`` where ``stopped`` was true, and ``ValueError`` for an output that is neither an image nor a
    video, or not finite.
    """
    if stopped():
        raise Cancelled
    takes = inspect.signature(pipe.__call__).parameters
    arguments = {**call, "prompt": prompt, "num_inference_steps": steps}
    if "generator" in takes:
        arguments["generator"] = torch.Generator().manual_seed(seed)
    if "output_type" in takes:
        arguments["output_type"] = "np"
    if "callback_on_step_end" in takes:

        def after(pipe: Any, step: int, *args: Any) -> dict[str, Any]:
            tell(min(step + 1, steps), steps)
            if stopped():
                raise Cancelled
            return {}

        arguments["callback_on_step_end"] = after
    with _asked_at_forwards(pipe, stopped, "callback_on_step_end" not in takes), torch.random.fork_rng():
        torch.manual_seed(seed)  # some pipelines draw beside their generator
        _wait_for_device()
        start = time.perf_counter()
        output = pipe(**arguments)
        _wait_for_device()
        seconds = time.perf_counter() - start
    return _pictures(output), seconds


def tried(pipe: Any, prompt: str, steps: int, call: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape [F, H, W, 3] of what a pipeline makes, found out in two steps, which warm it up as well.

    Raises ``ValueError`` for a pipeline that takes no prompt or number of steps, makes neither images nor videos, or
    fails; ``MemoryError`` and ``torch.OutOfMemoryError`` as they come.
    """
    takes = inspect.signature(pipe.__call__).parameters
    for name in ("prompt", "num_inference_steps"):
        if name not in takes:
            raise ValueError(f"{type(pipe).__name__} takes no {name}: the page is for pipelines that a prompt is given")
    with _failing(f"{type(pipe).__name__} does not run from a prompt alone"):
        clip, _ = sampled(pipe, prompt, 0, min(2, steps), call, lambda done, total: None, lambda: False)
    return clip.shape


def begun(pipe: Any, prompt: str, steps: int, call: Mapping[str, Any]) -> None:
    """The first two steps of a run of so many: what cannot be accelerated is known by then.

    Of pipelines that tell nothing of their steps none are made.  Raises ``ValueError`` where it fails.
    """
    if "callback_on_step_end" not in inspect.signature(pipe.__call__).parameters:
        return
    told: list[int] = []
    with _failing(f"{type(pipe).__name__} does not run accelerated"), contextlib.suppress(Cancelled):
        sampled(pipe, prompt, 0, steps, call, lambda done, total: told.append(done), lambda: len(told) > 1)


@contextmanager
def _failing(said: str) -> Iterator[None]:
    """Errors other than ``ValueError`` are one, that begins with what is said; the memory's stay."""
    try:
        yield
    except (ValueError, MemoryError, torch.OutOfMemoryError, Cancelled):
        raise
    except Exception as error:
        raise ValueError(f"{said}: {type(error).__name__}: {error}; --call gives further arguments") from error


def _pictures(output: Any) -> np.ndarray:
    """The output's first clip.  Raises ``ValueError`` where it has none."""
    made = first_of(output)
    if is_sound(made):
        raise ValueError("the pipeline makes sound: the page shows images and videos. `vaccel compare` compares sounds")
    if made.ndim == 3:  # greyscale images may have no channels
        made = made[..., None]
    if made.ndim != 4 or made.shape[-1] not in (1, 3, 4):
        raise ValueError(f"the pipeline makes neither images nor videos: its output has the shape {list(made.shape)}")
    if not np.isfinite(made).all():
        raise ValueError("the model's output is not finite: in half precision some models are not; try --dtype float32")
    return np.repeat(made, 3, axis=-1) if made.shape[-1] == 1 else made[..., :3]


@contextmanager
def _asked_at_forwards(pipe: Any, stopped: Callable[[], bool], asked: bool) -> Iterator[None]:
    """Within the context every forward of a denoiser asks whether to go on, where ``asked``."""

    def ask(module: Any, args: Any) -> None:
        if stopped():
            raise Cancelled

    handles = [module.register_forward_pre_hook(ask) for module in denoisers_of(pipe).values()] if asked else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
