"""Loads the compiled kernels, once, if they were built."""

from __future__ import annotations

from pathlib import Path

import torch


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
