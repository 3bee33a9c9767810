"""The losses of arXiv 2506.03123, on tensors alone.  Every mean is over all elements, frames and samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def pseudo_huber(ends: torch.Tensor, targets: torch.Tensor, c: float = 0.001) -> torch.Tensor:
    """mean sqrt(d^2 + c^2) - c of the difference d of two phase ends [B, ...] (the authors' release; c in latents)."""
    difference = ends.to(_exact(ends)) - targets.to(_exact(ends))
    return ((difference.square() + c * c).sqrt() - c).mean()


def squared(ends: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """mean d^2 (eq. 6 and 7)."""
    return (ends.to(_exact(ends)) - targets.to(_exact(ends))).square().mean()


def temporal_coherence(ends: torch.Tensor, targets: torch.Tensor, lag: int, axis: int) -> torch.Tensor:
    """mean square of how the changes over ``lag`` frames differ in the two phase ends [B, ...] (eq. 8).

    Args:
        lag: l, in latent frames.
        axis: the frames' axis.

    Raises ``ValueError`` for a clip with no two frames that far apart.
    """
    frames = ends.shape[axis]
    if not 1 <= lag < frames:
        raise ValueError(f"the temporal coherence loss looks {lag} latent frames back; these clips have {frames}")
    difference = ends.to(_exact(ends)) - targets.to(_exact(ends))
    later, earlier = difference.narrow(axis, lag, frames - lag), difference.narrow(axis, 0, frames - lag)
    return (later - earlier).square().mean()


def discriminator_hinge(real: Sequence[torch.Tensor], fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """The discriminator's loss, a mean over the heads: relu(1 - real) + relu(1 + fake) (eq. 10, with the hinge)."""
    pairs = zip(real, fake, strict=True)
    return torch.stack([F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in pairs]).mean()


def generator_hinge(fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """The detail expert's loss, a mean over the heads: relu(1 - fake) (eq. 10, with the release's hinge)."""
    return torch.stack([F.relu(1 - f).mean() for f in fake]).mean()


def feature_matching(fake: Sequence[torch.Tensor], real: Sequence[torch.Tensor]) -> torch.Tensor:
    """mean square between the teacher's features of the expert's output and of its target (eq. 10)."""
    return torch.stack([squared(f, r) for f, r in zip(fake, real, strict=True)]).mean()


def _exact(t: torch.Tensor) -> torch.dtype:
    """At least in single precision, which losses are summed in."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32
