"""Clips with captions from a folder of videos."""

from __future__ import annotations

import json

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from vaccel.distill import video_folder


def frames_of(count: int, height: int, width: int) -> np.ndarray:
    """Frame f is of gray 20 f all over."""
    gray = 20 * np.arange(count, dtype=np.uint8)
    return np.broadcast_to(gray[:, None, None, None], (count, height, width, 3)).copy()


class TestVideoFolder:
    def test_formats(self, tmp_path):
        frames = frames_of(8, 48, 64)
        iio.imwrite(tmp_path / "a.png", frames, plugin="pillow", duration=80, loop=0)
        iio.imwrite(tmp_path / "b.webp", frames, plugin="pillow", duration=80, lossless=True)
        iio.imwrite(tmp_path / "c.gif", frames, plugin="pillow", duration=80)
        iio.imwrite(tmp_path / "d.mp4", frames, fps=12, codec="libx264", plugin="FFMPEG")
        for letter in "abcd":
            (tmp_path / f"{letter}.txt").write_text(f"clip {letter}\n")
        clips = list(video_folder(tmp_path, frames=4, height=24, width=24, stride=2))
        assert [caption for caption, _ in clips] == ["clip a", "clip b", "clip c", "clip d"]
        expected = torch.arange(0, 8, 2) * 20 / 255
        for (caption, clip), tolerance in zip(clips, (1e-6, 1e-6, 1e-6, 0.02), strict=True):
            assert clip.shape == (4, 24, 24, 3), caption
            assert clip.dtype == torch.float32
            torch.testing.assert_close(clip.mean(dim=(1, 2, 3)), expected, rtol=0, atol=tolerance)

    def test_covers_and_cuts_the_centre(self, tmp_path):
        image = np.zeros((40, 80, 3), np.uint8)
        image[:, :20], image[:, 60:], image[:, 20:60] = (255, 0, 0), (0, 0, 255), (0, 255, 0)
        iio.imwrite(tmp_path / "wide.png", image)
        (tmp_path / "wide.txt").write_text("wide")
        ((_, clip),) = video_folder(tmp_path, frames=1, height=20, width=20)
        assert clip.shape == (1, 20, 20, 3)
        assert torch.equal(clip[0, :, 2:-2], torch.tensor([0.0, 1.0, 0.0]).expand(20, 16, 3))
        ((_, same),) = video_folder(tmp_path, frames=1, height=40, width=80)
        assert torch.equal(same[0], torch.from_numpy(image) / 255)

    def test_metadata_in_its_order(self, tmp_path):
        (tmp_path / "clips").mkdir()
        for name in ("x.png", "y.png"):
            iio.imwrite(tmp_path / "clips" / name, frames_of(1, 16, 16)[0])
        lines = [{"file_name": f"clips/{n}.png", "text": f"a {n}"} for n in "yx"]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
        clips = video_folder(tmp_path, frames=1, height=16, width=16)
        assert len(clips) == 2
        assert [caption for caption, _ in clips] == [caption for caption, _ in clips] == ["a y", "a x"]

    def test_short_files_are_left_out_aloud(self, tmp_path):
        iio.imwrite(tmp_path / "short.png", frames_of(3, 16, 16), plugin="pillow")
        iio.imwrite(tmp_path / "tall.png", frames_of(6, 16, 16), plugin="pillow")
        for name in ("short", "tall"):
            (tmp_path / f"{name}.txt").write_text(name)
        with pytest.warns(UserWarning, match=r"short\.png is left out: it has 3 of the 5 frames"):
            clips = list(video_folder(tmp_path, frames=5, height=16, width=16))
        assert [caption for caption, _ in clips] == ["tall"]

    def test_refusals(self, tmp_path):
        sizes = {"frames": 1, "height": 16, "width": 16}
        with pytest.raises(FileNotFoundError, match="no folder"):
            video_folder(tmp_path / "nowhere", **sizes)
        with pytest.raises(ValueError, match="holds no clips"):
            video_folder(tmp_path, **sizes)
        with pytest.raises(ValueError, match="at least 1"):
            video_folder(tmp_path, frames=1, height=16, width=0)
        iio.imwrite(tmp_path / "x.png", frames_of(1, 16, 16)[0])
        with pytest.raises(ValueError, match=r"x\.png has no caption"):
            video_folder(tmp_path, **sizes)
        (tmp_path / "x.txt").write_text(" \n")
        with pytest.raises(ValueError, match=r"x\.txt has no caption"):
            video_folder(tmp_path, **sizes)
        for line, error, message in (
            ('{"file_name": "x.png"}', ValueError, "line 1 of .* is not"),
            ('{"file_name": "x.png", "text": ""}', ValueError, "line 1 of .* has no caption"),
            ('{"file_name": "z.png", "text": "a z"}', FileNotFoundError, "lists .*z.png"),
            ("x.png, a cat", ValueError, "line 1 of .* is not"),
        ):
            (tmp_path / "metadata.jsonl").write_text(line)
            with pytest.raises(error, match=message):
                video_folder(tmp_path, **sizes)
