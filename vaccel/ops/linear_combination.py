"""linear_combination(x, a) = sum over k of a[k] x[k], a by sample and channel; guided: both branches, combined."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ._check import output
from ._dispatch import run

MOST_TENSORS = 6  # of each branch; the kernels take no more


def linear_combination(
    tensors: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    out: torch.Tensor | None = None,
    *,
    channel_dim: int = 1,
    impl: str | None = None,
) -> torch.Tensor:
    """The linear combination of a multistep formula: sum over k of coefficients[k] tensors[k].

    Args:
        tensors: 1 to 6, each [B, ...], of one dtype; added in their order, in fp32.
        coefficients: [n, B or 1, C or 1], fp32, for each of the n tensors, by sample and channel.
        out: where to write, of the tensors' dtype; allocated if not given.
        channel_dim: the dimension of C, any but the first; tensors of one dimension have no channels.
        impl: one of "cpp", "cuda", "triton", "torch", "reference"; by default the fastest that can run.

    Raises ``ValueError`` for too few or too many tensors, shapes or coefficients that do not fit, coefficients on
    another device, an unknown ``impl``, or one that was requested and cannot run here.
    """
    op = "linear_combination"
    tensors = _listed(op, "tensors", tensors)
    out = output(op, out, tensors=tensors)
    options, fits = _channels(op, tensors, coefficients, channel_dim)
    return run(op, impl, _plain, (*tensors,), (tensors, coefficients), out, fits=fits, options=options)


def linear_combination_guided(
    cond: Sequence[torch.Tensor],
    uncond: Sequence[torch.Tensor],
    coefficients: torch.Tensor,
    scale: float,
    out: torch.Tensor | None = None,
    *,
    channel_dim: int = 1,
    impl: str | None = None,
) -> torch.Tensor:
    """Both branches' combinations with the same coefficients, then classifier-free guidance: u + w (c - u).

    Args:
        cond, uncond: 1 to 6 tensors each, as ``linear_combination`` takes them; as many of one as of the other.
        coefficients: [n, B or 1, C or 1], fp32.
        scale: the guidance scale w.
        out, channel_dim, impl: as ``linear_combination`` takes them.

    Raises as ``linear_combination`` does, and for branches of different lengths.
    """
    op = "linear_combination_guided"
    cond, uncond = _listed(op, "cond", cond), _listed(op, "uncond", uncond)
    if len(cond) != len(uncond):
        raise ValueError(f"{op}: cond has {len(cond)} tensors, uncond {len(uncond)}")
    out = output(op, out, cond=cond, uncond=uncond)
    options, fits = _channels(op, cond, coefficients, channel_dim)
    args = (cond, uncond, coefficients, float(scale))
    return run(op, impl, _plain_guided, (*cond, *uncond), args, out, fits=fits, options=options)


def _listed(op: str, name: str, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    tensors = list(tensors)
    if not 1 <= len(tensors) <= MOST_TENSORS:
        raise ValueError(f"{op}: {name} must be 1 to {MOST_TENSORS} tensors, got {len(tensors)}")
    return tensors


def _channels(
    op: str, tensors: list[torch.Tensor], coefficients: torch.Tensor, channel_dim: int
) -> tuple[dict[str, int], bool]:
    """({"channel_dim": non-negative index of the channel dimension}, whether a kernel can take the coefficients).

    Raises ``ValueError`` for an invalid dimension, or coefficients that do not fit these tensors.
    """
    x, channels = tensors[0], 1
    shape = x.shape
    batch, dimensions = shape[0], len(shape)
    if dimensions > 1:
        if not -dimensions < channel_dim < dimensions or channel_dim == 0:
            raise ValueError(f"{op}: channel_dim {channel_dim} is no dimension of {tuple(shape)} after the first")
        channel_dim %= dimensions
        channels = shape[channel_dim]
    actual = tuple(coefficients.shape)
    if len(actual) != 3 or actual[0] != len(tensors) or actual[1] not in (1, batch) or actual[2] not in (1, channels):
        expected = f"[{len(tensors)}, {batch} or 1, {channels} or 1]"
        raise ValueError(f"{op}: coefficients must be {expected}, got {actual}")
    if coefficients.device != x.device:
        raise ValueError(f"{op}: the coefficients are on {coefficients.device}, the tensors on {x.device}")
    gradients = coefficients.requires_grad and torch.is_grad_enabled()
    return {"channel_dim": channel_dim}, coefficients.dtype == torch.float32 and not gradients


def _combined(tensors: list[torch.Tensor], coefficients: torch.Tensor, channel_dim: int) -> torch.Tensor:
    count, batch, channels = coefficients.shape
    shape = [count, batch, *[1] * (tensors[0].ndim - 1)]
    if tensors[0].ndim > 1:
        shape[1 + channel_dim] = channels
    first, *others = (
        factor * x.float() for factor, x in zip(coefficients.float().reshape(shape), tensors, strict=True)
    )
    return sum(others, first)


def _plain(
    tensors: list[torch.Tensor], coefficients: torch.Tensor, out: torch.Tensor, channel_dim: int
) -> torch.Tensor:
    return out.copy_(_combined(tensors, coefficients, channel_dim))


def _plain_guided(
    cond: list[torch.Tensor],
    uncond: list[torch.Tensor],
    coefficients: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    channel_dim: int,
) -> torch.Tensor:
    c, u = (_combined(branch, coefficients, channel_dim) for branch in (cond, uncond))
    return out.copy_(u + scale * (c - u))
