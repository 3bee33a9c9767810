"""Training data of consistency distillation: clean latents and the transformer's other arguments, in shards."""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..calibrate.samples import Progress, silent
from ..integrations.diffusers.call_arguments import check_call
from ..models import Family, find, fingerprints
from ..planning import artifacts, files
from ..planning.leftovers import sweep
from .outputs import check_counts, check_folder, claimed
from .recorded_arguments import SET_BY_RECORDING, record
from .shard_store import ShardStore
from .shards import INDEX, METHOD

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def prepare(
    pipe: Any,
    clips: Iterable[tuple[str, torch.Tensor]],
    out: str | Path,
    *,
    call: dict[str, Any],
    negative_prompt: str | None = None,
    shard_size: int = 256,
    total: int | None = None,
    progress: Progress = silent,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Writes clips as training data into the folder ``out`` and returns the data of its ``index.json``.

    When interrupted (Ctrl-C or an error), it writes its samples as a shorter last shard; the same call resumes there,
    and the files are, byte for byte, those of an uninterrupted run.  A caption's arguments are recorded once, however
    many clips it has.

    Args:
        pipe: a pipeline with one transformer of a known family, which takes only noise and text.
        clips: (caption, clip [frames, H, W, 3] in [0, 1]), the same ones in the same order each time.
        call: the arguments of the pipeline's call, without prompts; frames, height and width are the clips'.  With
            guidance (``guidance_scale`` or ``true_cfg_scale`` above 1) the unconditional call is recorded as well.
        negative_prompt: of the unconditional call; Qwen-Image has no guidance without it.
        shard_size: samples a shard.
        total: how many clips to take at most; None: all of them.
        progress: called with the samples done, their total (0 where it is unknown) and the caption.
        dtype: of the stored latents, fp32 if not given.  Arguments are stored as the pipeline passes them.

    When killed, it loses the samples since the last write: those of a shard, two minutes' at most.

    Raises ``ValueError`` for settings out of range, for a folder that cannot be written into or that another process
    writes into, for no clips, for clips that do not fit the call, for arguments that differ between samples though they
    are not one row a sample, and where ``out`` holds damaged data, data of other settings or other clips; ``OSError``
    that names the file where one cannot be written.
    """
    check_counts(shard_size=(shard_size, 1), total=(1 if total is None else total, 1))
    if getattr(pipe, "transformer_2", None) is not None:
        raise ValueError("pipelines with two transformers are experts already: distillation takes those with one")
    family = find(pipe.transformer)
    call = {k: v for k, v in call.items() if k not in SET_BY_RECORDING}
    dtype = dtype or torch.float32
    if dtype not in _DTYPES:
        raise ValueError(f"latents are stored in one of {', '.join(map(str, _DTYPES))}, not {dtype}")
    check_call(pipe, call)
    check_folder(Path(out))
    with claimed(Path(out)):
        sweep(Path(out))  # what a killed call had not finished writing
        files.settle(Path(out) / INDEX)
        return _prepare(pipe, family, clips, Path(out), call, negative_prompt, shard_size, total, progress, dtype)


def _prepare(
    pipe: Any, family: Family, clips: Iterable[tuple[str, torch.Tensor]], out: Path, call: dict[str, Any],
    negative_prompt: str | None, shard_size: int, total: int | None, progress: Progress, dtype: torch.dtype,
) -> dict[str, Any]:  # fmt: skip
    store = ShardStore(out, _header(pipe, family, call, negative_prompt, shard_size, dtype))
    if total is not None and len(store) >= total:
        return store.data()
    goal = min(total or sys.maxsize, operator.length_hint(clips, total or 0))
    try:
        for number, (caption, clip) in enumerate(itertools.islice(clips, total)):
            if number < len(store):
                store.check(number, caption)
                continue
            progress(number, goal, caption)
            condition = store.condition(caption)
            if condition is None:
                condition = store.admit(caption, record(pipe, family, caption, call, negative_prompt))
            store.add(caption, {"latents": _encode(pipe, family, clip, caption).to(dtype), "cond": condition})
    finally:
        store.flush()
    if not len(store):
        raise ValueError("there are no clips to prepare")
    progress(len(store), len(store), "done")
    return store.data()


def _header(
    pipe: Any, family: Family, call: dict[str, Any], negative: str | None, size: int, dtype: torch.dtype
) -> dict[str, Any]:
    """The settings that all samples of a folder share."""
    return {
        "schema": artifacts.SCHEMA,
        "method": METHOD,
        "model": fingerprints.of_model(pipe.transformer),
        "base": str(pipe.config.get("_name_or_path") or ""),
        "family": family.name,
        "call": {k: v for k, v in call.items() if isinstance(v, (int, float, str, bool))},
        "negative_prompt": negative,
        "shard_size": size,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _encode(pipe: Any, family: Family, clip: torch.Tensor, caption: str) -> torch.Tensor:
    """A clip's latents [...] on the host."""
    if not isinstance(caption, str):
        raise ValueError(f"a caption is a string, got {caption!r}")
    if clip.ndim != 4 or clip.shape[-1] != 3 or not clip.is_floating_point():
        raise ValueError(f"a clip is [frames, H, W, 3] of floats, that of {caption!r} is {clip.dtype} {[*clip.shape]}")
    if not clip.numel():
        raise ValueError(f"the clip of {caption!r} is empty: {[*clip.shape]}")
    if not (float(clip.min()) >= 0 and float(clip.max()) <= 1):  # NaN neither
        raise ValueError(f"clips lie in [0, 1], that of {caption!r} in [{float(clip.min())}, {float(clip.max())}]")
    latents = family.encode(pipe, clip[None])[0].cpu()
    if not latents.isfinite().all():
        raise ValueError(f"the VAE makes latents of {caption!r} that are not finite: load it in float32")
    return latents
