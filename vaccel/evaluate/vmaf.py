"""VMAF, by the libvmaf of the ffmpeg that imageio-ffmpeg brings."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from .clips import as_uint8, enlarged

#: What people mean by VMAF: for a Full HD screen seen from three times its height.
MODEL = "vmaf_v0.6.1"
#: libvmaf takes no frames smaller than this, and scores equal frames lower within a margin of it.
_SMALLEST = 64


@functools.cache
def vmaf_missing() -> str:
    """Why VMAF cannot be measured here, or "" when it can."""
    try:
        ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
        said = subprocess.run([ffmpeg, "-hide_banner", "-filters"], capture_output=True, text=True, check=False).stdout
    except (RuntimeError, OSError) as error:
        return f"there is no ffmpeg ({error})"
    if not any("libvmaf" in line.split() for line in said.splitlines()):
        return f"{ffmpeg} has no libvmaf; IMAGEIO_FFMPEG_EXE may name one that has"
    return ""


def vmaf(reference: np.ndarray, clip: np.ndarray, fps: float = 12) -> float | None:
    """VMAF (model v0.6.1), mean over the frames; None where ffmpeg has no libvmaf.

    0 to 100; for equal clips between 97.43 and 100: a frame that does not move is scored 97.43 at most, and so is the
    first one, hence also a single image.  A difference of about 6 is one just-noticeable difference: 75 % of viewers
    see it (J. Ozer, streaminglearningcenter.com).  VMAF looks at luma alone.

    The model was trained for 1080p on a screen seen from three times its height.  A clip of 48 pixels would be a stamp
    there, and its errors below what the eye resolves; so small clips are enlarged as they are when they are saved
    (``clips.enlarged``), to 240 pixels or nearly, and both sides to at least 64.  Clips are rounded to 8 bits.

    Args:
        reference, clip: [F, H, W, 3] in [0, 1].
        fps: frames a second; the model does not depend on it.

    Raises ``ValueError`` for clips of different shapes, ``RuntimeError`` where ffmpeg fails.
    """
    if reference.shape != clip.shape:
        raise ValueError(f"clips of different shapes: {list(reference.shape)} and {list(clip.shape)}")
    if vmaf_missing():
        return None
    height, width = enlarged(as_uint8(clip[:1]), _SMALLEST).shape[1:3]
    graph = (
        "[0:v]scale=out_color_matrix=bt709:out_range=tv,format=yuv444p,split[p][q];"
        f"[p]crop={width}:{height}:0:0[clip];[q]crop={width}:{height}:0:{height}[reference];"
        f"[clip][reference]libvmaf=model=version={MODEL}:log_fmt=json:log_path=log.json:n_threads={_threads()}"
    )
    size = f"{width}x{2 * height}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-nostats"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "pipe:0"]
    with tempfile.TemporaryDirectory() as folder:
        said = _fed([*command, "-lavfi", graph, "-f", "null", "-"], Path(folder), reference, clip)
        try:
            log = json.loads((Path(folder) / "log.json").read_text())
            scores = [float(frame["metrics"]["vmaf"]) for frame in log["frames"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise RuntimeError(f"ffmpeg measured no VMAF: {said.strip() or 'it said nothing'}") from None
    if len(scores) != len(clip):
        raise RuntimeError(f"ffmpeg measured VMAF of {len(scores)} frames of {len(clip)}: {said.strip()}")
    return math.fsum(scores) / len(scores)


def _fed(command: list[str], folder: Path, reference: np.ndarray, clip: np.ndarray) -> str:
    """Gives ffmpeg the frames, the clip's above the reference's, and returns what it said.

    One after the other through a pipe: the clips are on no disk, and no second time in memory.
    """
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            for pair in zip(clip, reference, strict=True):
                frames = enlarged(as_uint8(np.stack(pair)), _SMALLEST)
                process.stdin.write(frames.tobytes())
        except BrokenPipeError:
            pass  # what it said tells why
        except BaseException:
            process.kill()
            raise
        return process.communicate()[1].decode(errors="replace")


def _threads() -> int:
    return min(4, os.cpu_count() or 1)
