"""Fidelity of a clip to the full model's: PSNR, SSIM, and LPIPS where its weights are installed."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def psnr(reference: np.ndarray, clip: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of [F, H, W, 3] in [0, 1], over the whole clip; inf for equal clips."""
    if np.array_equal(reference, clip):
        return math.inf
    return float(peak_signal_noise_ratio(reference, clip, data_range=1.0))


def ssim(reference: np.ndarray, clip: np.ndarray) -> float:
    """Structural similarity of [F, H, W, 3] in [0, 1], mean over the frames."""
    frames = zip(reference, clip, strict=True)
    return float(np.mean([structural_similarity(a, b, data_range=1.0, channel_axis=-1) for a, b in frames]))


@functools.cache
def lpips_missing() -> str:
    """Why LPIPS cannot be measured here, or "" when it can.  Its weights are never downloaded."""
    try:
        import torchmetrics.image.lpip  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        return f"LPIPS left out: {error.name or error} is not installed"
    home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    if not list(home.glob("hub/checkpoints/alexnet*")):
        return f"LPIPS left out: no AlexNet weights under {home}/hub/checkpoints"
    return ""


@functools.cache
def _lpips_network():
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)


def lpips(reference: np.ndarray, clip: np.ndarray) -> float | None:
    """LPIPS (AlexNet) of [F, H, W, 3] in [0, 1], mean over the frames; None where its weights are not installed."""
    if lpips_missing():
        return None
    import torch

    def tensor(frames: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(frames)).float().permute(0, 3, 1, 2)

    with torch.no_grad():
        return float(_lpips_network()(tensor(clip), tensor(reference)))
