"""Calibrates LeMiCa (arXiv 2511.00090): the error of the finished latents for every stretch of skipped steps."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .. import deprecated
from ..methods.lemica import LeMiCa
from ..models import fingerprints
from ..models.denoisers import main_denoiser
from ..planning import artifacts, files
from ..planning.joining import hash_of
from .replay import Record, Replayer, Reuse, Stretch, Tails
from .samples import Progress, Samples, silent, steps_of


def calibrate_lemica(
    pipe: Any,
    prompts: list[str],
    path: Path,
    *,
    seeds: list[int] = (0,),
    call: dict[str, Any],
    small: nn.Module | None = None,
    reuse: Reuse = "blocks",
    max_gap: int = 7,
    compare: Literal["latents", "pixels"] = "latents",
    tails: Tails = "exact",
    stride: int = 2,
    batch: int = 1,
    min_budget: int | None = None,
    progress: Progress = silent,
    hopeless: int | None = None,
) -> dict[str, Any]:
    """Measures the edge errors of every sample; writes the artifact ``path`` after each batch and returns its data.

    The error of an edge (i, j) is the mean |x_0 - x_0 in full| of a run computed up to step i, reusing step i's
    residual up to step j, and computed again from j on.  An interrupted calibration resumes with the same call.

    Args:
        call: arguments of the pipeline's call, ``num_inference_steps`` among them.
        small: the small transformer, for ``tails="small"``.
        reuse: what a stretch reuses, "blocks" or "residual", of the output.
        max_gap: longest edge, in steps.
        compare: final latents, or decoded pixels (the paper's; a VAE decode an edge).
        tails, stride: how the steps after a stretch are computed; all but "exact" approximate (``calibrate.replay``).
        batch: edges measured in one forward; they share the step they end at.
        min_budget: the smallest number of full steps that schedules will be made for.  Edges that none of them can
            need are not measured: those longer than an edge whose error exceeds the worst one of the
            evenly spaced schedule (this assumes that errors grow with an edge's length).
        hopeless: deprecated name of ``min_budget``.

    Raises ``ValueError`` when ``path`` holds a calibration of something else, or a setting is out of range.
    """
    if hopeless is not None:
        deprecated.warn("calibrate_lemica", "hopeless")
        min_budget = hopeless
    settings = {"reuse": reuse, "max_gap": max_gap, "compare": compare, "tails": tails, "stride": stride,
                "min_budget": min_budget}  # fmt: skip
    header = header_of(pipe, call, small, batch=batch, **settings)
    samples = Samples(Path(path), header, prompts, list(seeds))
    jobs = samples.jobs
    for key, sample in samples.data.items():
        if sample.get("done"):  # and the process was killed before it could delete the record
            record_of(Path(path), key).unlink(missing_ok=True)
    with replayer_of(pipe, call, small, **settings) as replayer:
        for number, (key, prompt, seed) in enumerate(jobs):
            sample = samples.data.get(key) or dict(NOTHING, errors={})
            kept = record_of(Path(path), key)
            if not sample.get("done"):
                for done, total in measure(replayer, sample, kept, header, prompt, seed, batch):
                    samples.data[key] = sample
                    samples.save()
                    progress(number * total + done, len(jobs) * total, prompt)
                samples.data[key] = {**sample, "done": True}
                samples.save()
            kept.unlink(missing_ok=True)
            files.sweep(kept)
    return samples.merge()


#: A sample of which no edge is measured yet.
NOTHING: dict[str, Any] = {"errors": {}, "forwards": 0, "small_forwards": 0}


def header_of(
    pipe: Any, call: dict[str, Any], small: nn.Module | None, *, batch: int, max_gap: int, stride: int, compare: str,
    tails: str, min_budget: int | None, reuse: str,
) -> dict[str, Any]:  # fmt: skip
    """What all samples share.  Raises ``ValueError`` for a setting out of range."""
    if max_gap < 2 or batch < 1 or stride < 1:
        raise ValueError(f"max_gap must be >= 2, batch and stride >= 1: got {max_gap}, {batch} and {stride}")
    if compare not in ("latents", "pixels"):
        raise ValueError(f"compare must be 'latents' or 'pixels', got {compare!r}")
    steps = steps_of(call, 3)
    _evenly_spaced(steps - 1, min_budget, max_gap)  # refuses what cannot be
    settings = {"reuse": reuse, "max_gap": max_gap, "compare": compare, "tails": tails, "stride": stride,
                "min_budget": min_budget, "num_steps": steps}  # fmt: skip
    if tails == "small" and small is not None:
        settings["small"] = fingerprints.identity({"small": small})["weights"]
    return fingerprints.header(LeMiCa.id, pipe, call, **settings)


def replayer_of(
    pipe: Any, call: dict[str, Any], small: nn.Module | None, *, compare: str, min_budget: int | None, **settings: Any
) -> Replayer:
    """What replays the samples of a calibration with these settings."""
    return Replayer(pipe, call, small=small, output="latent" if compare == "latents" else "pt", **settings)


def record_of(path: Path, key: str) -> Path:
    """Where the full run of a sample is kept until all of its edges are measured."""
    return path.with_name(f"{path.name}.{key}.record.safetensors")


def measure(
    replayer: Replayer, sample: dict[str, Any], kept: Path, header: dict[str, Any], prompt: str, seed: int, batch: int
) -> Iterator[tuple[int, int]]:
    """Measures the missing edges of one sample; yields (replayed steps done, their total) after every batch.

    Args:
        sample: is added to.
        kept: the file of the sample's full run; made where there is none of exactly this.
        header: the calibration's.
    """
    recorded = {"header": hash_of(json.dumps([header, prompt, seed], sort_keys=True))}
    max_gap, min_budget = header["max_gap"], header["min_budget"]
    record = _recorded(replayer, kept, recorded, prompt, seed)
    errors, last = sample["errors"], len(record.outputs) - 1
    even = _evenly_spaced(last, min_budget, max_gap)
    groups = [[s] for s in even] + list(_groups(last, max_gap, batch))
    work = [sum(last + 1 - s.end for s in group) for group in groups]
    for number, group in enumerate(groups):
        # The worst error of the evenly spaced schedule, once it is known.
        bound = max(errors[_name(s)] for s in even) if even and number >= len(even) else None
        missing = [s for s in group if _name(s) not in errors and not _exceeds(errors, s, bound)]
        if not missing:
            continue
        before = replayer.forwards, replayer.small_forwards
        errors |= {_name(s): e for s, e in zip(missing, replayer.errors(record, missing, prompt, seed), strict=True)}
        sample["forwards"] += replayer.forwards - before[0]
        sample["small_forwards"] += replayer.small_forwards - before[1]
        yield sum(work[: number + 1]), sum(work)


def _groups(last: int, max_gap: int, batch: int) -> Iterator[list[Stretch]]:
    """All edges in batches, each of which ends at one step."""
    for end in range(2, last + 1):
        edges = [Stretch(start, end) for start in range(max(0, end - max_gap), end - 1)]
        yield from (edges[k : k + batch] for k in range(0, len(edges), batch))


def _evenly_spaced(last: int, budget: int | None, max_gap: int) -> list[Stretch]:
    """The edges with skipped steps in the evenly spaced schedule of ``budget`` full steps."""
    if budget is None:
        return []
    if budget < 2 or last > max_gap * (budget - 1):
        raise ValueError(
            f"min_budget={budget}: gaps of {max_gap} make no schedule of {budget} full steps in {last + 1}"
        )
    stops = [round(k * last / (budget - 1)) for k in range(budget)]
    return [Stretch(a, b) for a, b in itertools.pairwise(stops) if b - a > 1]


def _exceeds(errors: dict[str, float], stretch: Stretch, bound: float | None) -> bool:
    """Whether a shorter edge from the same step has an error above the bound."""
    if bound is None:
        return False
    shorter = (_name(Stretch(stretch.start, end)) for end in range(stretch.start + 2, stretch.end))
    return any(errors.get(name, 0.0) > bound for name in shorter)


def _name(stretch: Stretch) -> str:
    return f"{stretch.start}-{stretch.end}"


def _recorded(replayer: Replayer, kept: Path, header: dict[str, str], prompt: str, seed: int) -> Record:
    """The full run, read from the file of an interrupted calibration where there is one of exactly this.

    Args:
        header: what the file must say of itself.
    """
    if (tensors := _kept(kept, header)) is not None:
        final = tensors.pop("final")
        outputs: list[list[torch.Tensor]] = []
        for name in sorted(tensors):
            if name.endswith(".0"):
                outputs.append([])
            outputs[-1].append(tensors[name].to(main_denoiser(replayer.pipe).device))
        replayer.residuals.clear()
        return Record(outputs, final.to(main_denoiser(replayer.pipe).device))
    record = replayer.record(prompt, seed)
    named = {f"{i:05d}.{b}": v for i, step in enumerate(record.outputs) for b, v in enumerate(step)}
    kept.parent.mkdir(parents=True, exist_ok=True)
    artifacts.save_tensors(kept, {**named, "final": record.final}, header)
    return record


def _kept(kept: Path, header: dict[str, str]) -> dict[str, torch.Tensor] | None:
    """The tensors of a file with this header; None where it is missing, damaged, or of something else."""
    try:
        with safe_open(kept, "pt") as file:
            if file.metadata() != header:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
