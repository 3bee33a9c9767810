"""Clips with captions: a folder of videos, or the moving shapes that the package draws."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from torch.nn import functional as F

_VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
_PICTURES = (".gif", ".webp", ".png", ".apng", ".jpg", ".jpeg", ".bmp")  # animated ones among them
Captioned = tuple[str, torch.Tensor]  # a caption and its clip [frames, H, W, 3] in [0, 1]


class VideoFolder:
    """The clips of a folder, read one at a time, in the order of the listing; see ``video_folder``."""

    def __init__(self, entries: list[tuple[Path, str]], frames: int, height: int, width: int, stride: int):
        self.entries, self.frames, self.height, self.width, self.stride = entries, frames, height, width, stride

    def __len__(self) -> int:
        """Number of files; those that are too short yield no clip."""
        return len(self.entries)

    def __iter__(self) -> Iterator[Captioned]:
        for path, caption in self.entries:
            frames = _frames(path, self.frames, self.stride)
            if len(frames) < self.frames:
                warnings.warn(
                    f"{path} is left out: it has {len(frames)} of the {self.frames} frames that stride {self.stride} "
                    "asks for",
                    stacklevel=2,
                )
                continue
            clip = torch.from_numpy(np.stack(frames)).float() / 255
            yield caption, fitted(clip, self.height, self.width)


def video_folder(folder: str | Path, *, frames: int, height: int, width: int, stride: int = 1) -> VideoFolder:
    """(caption, clip [frames, height, width, 3] in [0, 1]) of every video and picture of a folder.

    Captions come from ``metadata.jsonl`` (``file_name`` and ``text``, as the datasets library's videofolder has it; its
    order), or from a .txt beside each file (sorted by path, subfolders among them).  A clip is the frames 0, stride,
    2 stride, ... of its file, scaled until it covers height x width and cut to its centre; a picture is one frame.

    Raises ``FileNotFoundError`` for a missing folder or a missing file of the metadata, ``ValueError`` for a
    missing caption, malformed metadata, or an empty folder.  A file with too few frames is skipped with a warning.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    if min(frames, height, width, stride) < 1:
        raise ValueError("frames, height, width and stride must be at least 1")
    metadata = folder / "metadata.jsonl"
    entries = _listed(metadata) if metadata.is_file() else _beside(folder)
    if not entries:
        raise ValueError(f"{folder} holds no clips ({', '.join(_VIDEOS + _PICTURES)})")
    return VideoFolder(entries, frames, height, width, stride)


def demo_clips(count: int, seed: int) -> Iterator[Captioned]:
    """``count`` clips of moving shapes, from the training side of the split; the same seed gives the same clips."""
    from ..demo import shapes

    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        scene = shapes.draw_scene(generator, held_out=False, two=0.4)
        yield scene.caption, shapes.draw_clip(scene, generator)


def fitted(clip: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A clip [F, H, W, 3] in [0, 1] scaled, its shape kept, to cover height x width, and cut to its centre."""
    h, w = clip.shape[1:3]
    scale = max(height / h, width / w)
    size = max(height, math.floor(h * scale + 0.5)), max(width, math.floor(w * scale + 0.5))
    video = clip.permute(0, 3, 1, 2)
    if size != (h, w):
        video = F.interpolate(video, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return video[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1).contiguous()


def _listed(metadata: Path) -> list[tuple[Path, str]]:
    """The files that a metadata.jsonl lists."""
    entries = []
    for number, line in enumerate(metadata.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            name, text = data["file_name"], data["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f'line {number} of {metadata} is not {{"file_name": ..., "text": ...}}: {line}') from None
        path = metadata.parent / name
        if not path.is_file():
            raise FileNotFoundError(f"line {number} of {metadata} lists {path}, which is not there")
        entries.append((path, _caption(text, f"line {number} of {metadata}")))
    return entries


def _beside(folder: Path) -> list[tuple[Path, str]]:
    """The files of a folder that have a .txt beside them."""
    entries = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in _VIDEOS + _PICTURES):
        text = path.with_suffix(".txt")
        if not text.is_file():
            raise ValueError(f"{path} has no caption: neither {folder / 'metadata.jsonl'} nor {text} is there")
        entries.append((path, _caption(text.read_text(), str(text))))
    return entries


def _caption(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} has no caption")
    return text.strip()


def _frames(path: Path, count: int, stride: int) -> list[np.ndarray]:
    """The first ``count`` frames at a stride, [H, W, 3] in 0..255; fewer where the file ends."""
    if path.suffix.lower() in _PICTURES:
        frames = iio.imiter(path, plugin="pillow", mode="RGB", rotate=True)
    else:
        frames = iio.imiter(path, plugin="FFMPEG")
    try:
        return list(itertools.islice(frames, 0, (count - 1) * stride + 1, stride))
    finally:
        frames.close()  # stops the decoder early
