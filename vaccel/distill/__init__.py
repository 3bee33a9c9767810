"""Consistency distillation into two experts (DCM, arXiv 2506.03123): its data, its losses, its training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dataset import prepare
    from .shards import Batch, Shards
    from .sources import demo_clips, video_folder

__all__ = ["Batch", "Shards", "demo_clips", "prepare", "video_folder"]

#: name -> its module, which needs torch; the command line's help needs ``settings`` alone.
_LAZY = {
    "Batch": "shards", "Shards": "shards", "demo_clips": "sources", "prepare": "dataset", "video_folder": "sources",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
