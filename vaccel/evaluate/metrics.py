"""Fidelity to the full model's output, from the numbers alone: PSNR, SSIM and flicker of clips, SNR of sound."""

from __future__ import annotations

import math

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


def flicker(reference: np.ndarray, clip: np.ndarray) -> float | None:
    """How much the error changes from frame to frame, in 8-bit code values; None for a single frame.

    With the error e_f = clip_f - reference_f of frame f, the root mean square over frames, pixels and channels of

        255 (e_f - e_(f-1)) = 255 ((clip_f - clip_(f-1)) - (reference_f - reference_(f-1))):

    the frame difference that the clip has and the reference has not.  0 for equal clips and for an error that stands
    still, 2 a for one of a code values that changes its sign with every frame, sqrt(2) s for noise of deviation s that
    is new in every frame.

    Args:
        reference, clip: [F, H, W, 3] in [0, 1].
    """
    if len(reference) < 2:
        return None
    total, before = 0.0, None
    for a, b in zip(reference, clip, strict=True):  # frame by frame: clips of gigabytes have no copy in fp64
        error = b.astype(np.float64) - a
        if before is not None:
            total += float(np.mean(np.square(error - before)))
        before = error
    return 255 * math.sqrt(total / (len(reference) - 1))


def snr(reference: np.ndarray, sound: np.ndarray) -> float:
    """Signal-to-noise ratio in dB of waveforms [..., samples]: 10 log10(sum reference^2 / sum (sound - reference)^2).

    Of all channels together; inf for equal sounds, -inf where the reference is silent and the sound is not.
    """
    signal = reference.astype(np.float64)
    noise = float(np.sum(np.square(sound.astype(np.float64) - signal)))
    power = float(np.sum(np.square(signal)))
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power > 0 else -math.inf
