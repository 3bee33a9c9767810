"""Loads the compiled kernels, once, if they were built, and says which of an op's implementations runs."""

from __future__ import annotations

from pathlib import Path

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _load() -> tuple[bool, str]:
    """(loaded, where from or why not).  Loading registers the ops under ``torch.ops.vaccel``."""
    found = sorted((Path(__file__).resolve().parent.parent).glob("_native*.so"))
    if not found:
        return False, "not built (no vaccel/_native*.so): every op runs on plain torch, slower"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return False, f"{found[0].name} does not load: {error}"
    return True, str(found[0])


LOADED, DETAIL = _load()


def native() -> bool:
    """Whether the compiled CPU kernels are in use."""
    return LOADED


def _able(tensors: tuple[torch.Tensor, ...]) -> bool:
    """The kernels know one floating dtype for all tensors, on a CPU, and no gradients."""
    if not LOADED:
        return False
    dtype, gradients = tensors[0].dtype, torch.is_grad_enabled()
    for t in tensors:
        if not t.is_cpu or t.dtype != dtype or (gradients and t.requires_grad):
            return False
    return dtype in DTYPES


def compiled(op: str, impl: str | None, *tensors: torch.Tensor, also: bool = True) -> bool:
    """Whether the compiled kernel of ``op`` runs on ``tensors``: by default wherever it can, and only if ``also``.

    Raises ``ValueError`` for an ``impl`` that does not exist, or that was asked for and cannot run here.
    """
    if impl is None:
        return also and _able(tensors)
    if impl not in ("cpp", "torch"):
        raise ValueError(f"{op}: unknown impl {impl!r}; known: 'cpp', 'torch'")
    if impl == "cpp" and not (also and _able(tensors)):
        needs = "one of fp32, fp16, bf16 on a CPU, no gradients, outputs contiguous, magnitudes in fp32"
        raise ValueError(f"{op}: impl='cpp' needs {needs}; {DETAIL}")
    return impl == "cpp"


def fake_rows(first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """What a reduction returns of [B, ...]: [B] in fp32."""
    return first.new_empty(first.shape[:1], dtype=torch.float32)


def fake_like(first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """What a map returns of [B, ...]: the same, contiguous."""
    return torch.empty_like(first, memory_format=torch.contiguous_format)


if LOADED:
    for _name in ("norm", "cosine", "relative_l1"):
        torch.library.register_fake(f"vaccel::{_name}", fake_rows)
    torch.library.register_fake("vaccel::direction_magnitude", fake_like)
    torch.library.register_fake("vaccel::cfg_combine", lambda cond, uncond, scale, out: None)
