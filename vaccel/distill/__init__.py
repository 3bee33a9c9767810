"""Consistency distillation into two experts (DCM): its data, its losses, its training."""

from .prepare import prepare
from .shards import Batch, Shards
from .sources import demo_clips, video_folder

__all__ = ["Batch", "Shards", "demo_clips", "prepare", "video_folder"]
