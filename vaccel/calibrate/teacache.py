"""Calibrates TeaCache (arXiv 2411.19108): a polynomial from the embedding's change to the output's change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import ops
from ..models import find, fingerprints
from ..models.denoisers import main_denoiser
from .samples import Progress, Samples, silent, steps_of


def calibrate_teacache(
    pipe: Any,
    prompts: list[str],
    path: Path,
    *,
    seeds: list[int] = (0,),
    call: dict[str, Any],
    retention: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Runs the full model and fits the coefficients; writes the artifact ``path`` and returns its data.

    For every step but the first the pair (relative L1 of m_i from m_(i-1), relative L1 of v_i from v_(i-1)) is recorded
    for the conditional branch; the coefficients are the least-squares fit of degree 4 to all pairs.  The artifact is
    written after each sample: an interrupted calibration resumes with the same call.

    Args:
        call: arguments of the pipeline's call, ``num_inference_steps`` among them.
        retention: fit for TeaCache's retention mode (projected embedding).

    Raises ``ValueError`` when ``path`` holds a calibration of something else.
    """
    samples = Samples(Path(path), header_of(pipe, call, retention), prompts, list(seeds))
    return samples.fill(lambda prompt, seed: sample_of(pipe, prompt, seed, call, retention), progress)


def header_of(pipe: Any, call: dict[str, Any], retention: bool) -> dict[str, Any]:
    """What all samples share.  Raises ``ValueError`` for a number of steps that nothing can be measured with."""
    steps_of(call)
    return fingerprints.header("teacache", pipe, call, retention=retention)


@torch.no_grad()
def sample_of(pipe: Any, prompt: str, seed: int, call: dict[str, Any], retention: bool) -> dict[str, list[float]]:
    """One full run: the changes of embedding and output from step to step."""
    family = find(main_denoiser(pipe))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record(module: torch.nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        inputs = family.bind(module, args, kwargs)
        half = len(inputs["hidden_states"]) // 2 if family.batched_guidance and pipe.guidance_scale > 1 else 0
        modulation = family.modulation(module, inputs, retention)[half:]
        seen.append((modulation.clone(), output[0][half:].clone()))

    hook = main_denoiser(pipe).register_forward_hook(record, with_kwargs=True)
    try:
        pipe(prompt, **{**call, "generator": torch.Generator().manual_seed(seed), "output_type": "latent"})
    finally:
        hook.remove()
    seen = seen[:: len(seen) // len(pipe.scheduler.timesteps)]  # the conditional calls of two-call guidance
    pairs = list(zip(seen[1:], seen[:-1], strict=True))
    return {
        "embedding": [float(ops.relative_l1(now[0], before[0])[0]) for now, before in pairs],
        "output": [float(ops.relative_l1(now[1], before[1])[0]) for now, before in pairs],
    }
