"""Clips and sounds as data URIs and files, and contact sheets."""

from __future__ import annotations

import base64
import io
import tempfile
import wave
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from ..planning import files

_SMALL = 128  # pixels; up to here lossless animation, above it video
_SHOWN = 240  # pixels; what is smaller is enlarged to be looked at


def as_uint8(clip: np.ndarray) -> np.ndarray:
    """[F, H, W, 3] in [0, 1] to 0..255."""
    return (np.clip(clip, 0, 1) * 255 + 0.5).astype(np.uint8)


def enlarged(frames: np.ndarray, least: int = 1) -> np.ndarray:
    """Frames [F, H, W, 3] as they are looked at: small ones, every pixel repeated, to 240 pixels at most.

    A side that is still shorter than ``least`` pixels makes it more.
    """
    height, width = frames.shape[1:3]
    scale = max(1, _SHOWN // max(height, width), -(-least // min(height, width)))
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def first_of(output: Any) -> np.ndarray:
    """The first clip of a pipeline's output, [F, H, W, 3] in [0, 1], or its first sound, [channels, samples]."""
    audios = getattr(output, "audios", None)
    if audios is None:
        return frames_of(output)
    sound = audios[0]
    return np.atleast_2d(np.asarray(sound.float().cpu() if hasattr(sound, "cpu") else sound, dtype=np.float32))


def is_sound(made: np.ndarray) -> bool:
    """Whether it is a sound [channels, samples]; clips have four axes."""
    return made.ndim == 2


def rate_of(pipe: Any) -> int:
    """Samples a second of what a pipeline of sounds makes; 44100 where it does not say."""
    for part in (pipe, *(getattr(getattr(pipe, name, None), "config", None) for name in ("vae", "vocoder"))):
        for name in ("sampling_rate", "sample_rate"):
            rate = getattr(part, name, None)
            if isinstance(rate, int) and rate > 0:
                return rate
    return 44100


def as_int16(sound: np.ndarray) -> np.ndarray:
    """A waveform in [-1, 1] in 16 bits."""
    return (np.clip(np.nan_to_num(sound), -1, 1) * 32767).round().astype(np.int16)


def sound_uri(sound: np.ndarray, rate: int) -> str:
    """A sound [channels, samples] in [-1, 1] as a ``data:`` URI, a WAV file of 16 bits."""
    made = io.BytesIO()
    with wave.open(made, "wb") as out:
        out.setnchannels(len(sound))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(as_int16(sound).T.tobytes())
    return "data:audio/wav;base64," + base64.b64encode(made.getvalue()).decode()


def frames_of(output: Any) -> np.ndarray:
    """The first clip of a pipeline's output, [F, H, W, 3] in [0, 1]; an image is a clip of one frame.

    Raises ``ValueError`` for sounds.
    """
    frames = getattr(output, "frames", None)
    if frames is None:
        if not hasattr(output, "images"):
            raise ValueError(f"the pipeline makes no pictures: its output is {type(output).__name__}")
        frames = [[output.images[0]]]
    clip = np.asarray(frames[0])
    return clip.astype(np.float32) / 255 if clip.dtype == np.uint8 else np.asarray(clip, dtype=np.float32)


def png_uri(picture: np.ndarray) -> str:
    """A picture [H, W, 3] in 0..255 as a ``data:`` URI, lossless."""
    data = iio.imwrite("<bytes>", picture, extension=".png", plugin="pillow", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data).decode()


def data_uri(clip: np.ndarray, fps: int = 12) -> tuple[str, bool]:
    """A clip as a ``data:`` URI and whether it is a video: lossless animated PNG when small, H.264 when not."""
    frames = as_uint8(clip)
    if max(frames.shape[1:3]) <= _SMALL:
        data = iio.imwrite("<bytes>", frames, extension=".png", plugin="pillow", duration=1000 / fps, loop=0)
        return "data:image/png;base64," + base64.b64encode(data).decode(), False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, clip, fps)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode(), True


def write_video(path: Path, clip: np.ndarray, fps: int = 12) -> None:
    """Writes [F, H, W, 3] in [0, 1] in the format of the path's suffix (.mp4, .gif, .png, .webp); small clips enlarged.

    Whole or not at all, through links to what they point to.  Raises ``OSError`` where it cannot be written.
    """
    frames = enlarged(as_uint8(clip))
    suffix, path = Path(path).suffix, Path(path).resolve()
    if path.exists() and not path.is_file():  # a device or a pipe
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / f"clip{suffix}"
            _encode(made, frames, fps)
            with path.open("wb") as out:
                out.write(made.read_bytes())
        return
    with files.replacing(path, suffix) as partial:
        _encode(partial, frames, fps)


def _encode(path: Path, frames: np.ndarray, fps: int) -> None:
    """Raises ``OSError`` where fewer frames were written than there are: an encoder may end well on a full disk."""
    if path.suffix.lower() in (".gif", ".png", ".webp"):
        iio.imwrite(path, frames, plugin="pillow", duration=1000 / fps, loop=0)
        return
    iio.imwrite(path, frames, fps=fps, codec="libx264", macro_block_size=2, plugin="FFMPEG")
    try:
        count = sum(1 for _ in iio.imiter(path, plugin="FFMPEG"))
    except Exception as error:
        raise OSError(f"what was written is no video ({error}); is the disk full?") from None
    if count < len(frames):
        raise OSError(f"only {count} of {len(frames)} frames were written; is the disk full?")


def contact_sheet(clips: list[np.ndarray], columns: int = 6, scale: int = 2) -> np.ndarray:
    """One row a clip, ``columns`` of its frames evenly spaced; [h, w, 3] in 0..255, thin gaps between."""
    rows = []
    for clip in clips:
        chosen = as_uint8(clip)[np.linspace(0, len(clip) - 1, columns).round().astype(int)]
        chosen = chosen.repeat(scale, axis=1).repeat(scale, axis=2)
        rows.append(np.concatenate([np.pad(f, ((0, 4), (0, 4), (0, 0)), constant_values=255) for f in chosen], axis=1))
    return np.concatenate(rows, axis=0)
