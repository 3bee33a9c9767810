"""Metrics: known values, what is missing, and their way into a comparison; tolerances follow from sample sizes."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import stat
import sys
import wave

import imageio_ffmpeg
import numpy as np
import pytest
import tiny
from rich.console import Console
from skimage import data
from typer.testing import CliRunner

from vaccel.cli import app
from vaccel.cli.compare import summary_table
from vaccel.evaluate import clips, compare, fidelity, metrics, parse_contender, perceptual, vmaf, write_report
from vaccel.evaluate.comparison import finite, row_of

CALL = {k: v for k, v in tiny.WAN_CALL.items() if k != "output_type"} | {"num_inference_steps": 4}
OURS, SAME = "Schedule([0,1], num_steps=4)", "Schedule([0,1,2,3], num_steps=4)"
SIGMA = 5  # standard deviations that a random figure may be off


def moving(frames: int = 5, height: int = 48, width: int = 48, pixels: int = 2) -> np.ndarray:
    """A window over a photograph, so many pixels further with every frame."""
    photo = data.astronaut().astype(np.float32) / 255
    return np.stack([photo[100 : 100 + height, 150 + pixels * f : 150 + pixels * f + width] for f in range(frames)])


def noise(shape: tuple[int, ...], deviation: float) -> np.ndarray:
    return deviation * np.random.default_rng(1).standard_normal(shape)


class TestNumbers:
    def test_equal_outputs(self):
        clip = moving()
        assert metrics.psnr(clip, clip) == math.inf
        assert metrics.flicker(clip, clip) == 0
        assert metrics.snr(clip[0].T, clip[0].T) == math.inf

    def test_an_error_that_stands_still_does_not_flicker(self):
        clip = np.round(moving() * 128) / 256  # sums of 256ths are exact
        offset = clip + np.float32(1 / 8)
        assert metrics.flicker(clip, offset) == 0
        assert metrics.psnr(clip, offset) == pytest.approx(20 * math.log10(8))

    def test_an_error_that_alternates_flickers_by_twice_its_size(self):
        clip = np.round(moving() * 128) / 256 + np.float32(1 / 4)
        sign = np.array([1, -1, 1, -1, 1], dtype=np.float32)[:, None, None, None]
        assert metrics.flicker(clip, clip + sign / 64) == pytest.approx(255 * 2 / 64, rel=1e-12)
        assert metrics.flicker(clip + sign / 64, clip) == metrics.flicker(clip, clip + sign / 64)

    def test_new_noise_in_every_frame_flickers_by_root_two_of_its_deviation(self):
        """Each difference has variance 2 s^2 and its neighbours in time correlation -1/2, so the mean of N squares has
        a variance of (8 + 2 * 2) s^4 / N at most, and its root a relative deviation of sqrt(12 / N) / 4."""
        clip, s = np.zeros((9, 40, 40, 3)), 0.02
        count = 8 * clip[0].size
        expected = 255 * s * math.sqrt(2)
        assert metrics.flicker(clip, clip + noise(clip.shape, s)) == pytest.approx(
            expected, rel=SIGMA * math.sqrt(12 / count) / 4
        )

    def test_a_single_frame_has_no_flicker(self):
        assert metrics.flicker(moving(1), moving(1) + 0.1) is None

    def test_snr_of_a_sine_in_white_noise(self):
        """The sine's power is 1/2 over whole periods; the noise's mean square is off by sqrt(2 / N), its product with
        nothing: SNR counts the noise alone."""
        samples, s = 20000, 0.05
        sine = np.sin(2 * np.pi * 440 * np.arange(samples) / samples)[None].repeat(2, axis=0)
        tolerance = SIGMA * 10 / math.log(10) * math.sqrt(2 / sine.size)
        expected = 10 * math.log10(0.5 / s**2)
        assert metrics.snr(sine, sine + noise(sine.shape, s)) == pytest.approx(expected, abs=tolerance)
        assert metrics.snr(sine, 2 * sine) == pytest.approx(0, abs=1e-9)
        assert metrics.snr(0 * sine, sine) == -math.inf


@pytest.mark.skipif(vmaf.vmaf_missing() != "", reason=vmaf.vmaf_missing())
class TestVmaf:
    def test_equal_clips(self):
        """The model's own maximum where nothing moves, 100 where much does; the first frame never moves."""
        still, clip = moving(4, pixels=0), moving(5, pixels=3)
        assert vmaf.vmaf(still, still) == pytest.approx(97.43, abs=0.01)
        assert vmaf.vmaf(still[:1], still[:1]) == pytest.approx(97.43, abs=0.01)
        assert vmaf.vmaf(clip, clip) == pytest.approx((97.43 + 4 * 100) / 5, abs=0.01)

    def test_it_falls_with_noise_and_takes_small_frames(self):
        for clip in (moving(3), moving(1), moving(2, 16, 40), moving(2, 9, 250), moving(2, 250, 244)):
            errors = noise(clip.shape, 1)
            found = [vmaf.vmaf(clip, np.clip(clip + s * errors, 0, 1)) for s in (0, 0.01, 0.03, 0.1)]
            assert found == sorted(found, reverse=True)
            assert found[0] - found[-1] > 6, "one just-noticeable difference at 20 dB"

    def test_clip_and_reference_are_not_exchanged(self):
        """Blur loses what cannot be had back: the blurred clip is the worse one, sharpening is rewarded."""
        sharp = moving(1, 240, 240)
        blurred = (sharp + np.roll(sharp, 1, 1) + np.roll(sharp, 1, 2) + np.roll(sharp, (1, 1), (1, 2))) / 4
        assert vmaf.vmaf(sharp, blurred) < vmaf.vmaf(blurred, sharp)

    def test_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match="different shapes"):
            vmaf.vmaf(moving(3), moving(2))

    def test_it_says_why_ffmpeg_failed(self, ffmpeg):
        ffmpeg("echo ' .. libvmaf V'; echo 'no such model' >&2; exit 1")
        with pytest.raises(RuntimeError, match="no such model"):
            vmaf.vmaf(moving(2), moving(2))


@pytest.fixture
def ffmpeg(monkeypatch, tmp_path):
    """Puts a shell script in ffmpeg's place."""

    def put(script: str) -> None:
        path = tmp_path / "ffmpeg"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(path))
        vmaf.vmaf_missing.cache_clear()

    yield put
    vmaf.vmaf_missing.cache_clear()


@pytest.fixture
def no_cvvdp(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycvvdp", None)
    perceptual.cvvdp_missing.cache_clear()
    yield
    perceptual.cvvdp_missing.cache_clear()


class TestMissing:
    def test_without_libvmaf(self, ffmpeg):
        ffmpeg("echo ' .. ssim VV->V'")
        assert "has no libvmaf" in vmaf.vmaf_missing()
        assert vmaf.vmaf(moving(2), moving(2)) is None
        assert "vmaf" not in [metric.name for metric in fidelity.chosen()]
        with pytest.raises(ValueError, match=r"vmaf cannot be measured here: .* has no libvmaf"):
            fidelity.chosen(["vmaf"])

    def test_without_any_ffmpeg(self, monkeypatch, ffmpeg):
        def none() -> str:
            raise RuntimeError("No ffmpeg exe could be found.")

        monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
        vmaf.vmaf_missing.cache_clear()
        assert vmaf.vmaf_missing() == "there is no ffmpeg (No ffmpeg exe could be found.)"

    def test_without_cvvdp(self, no_cvvdp):
        assert re.search(r"pip install 'vaccel\[quality\]' torch==\d+\.\d+\.\d+$", perceptual.cvvdp_missing())
        assert perceptual.cvvdp(moving(2), moving(2)) is None

    def test_bad_names_are_refused_before_anything_is_loaded(self, no_cvvdp, tmp_path):
        for name, said in (("vmaff", "unknown metric 'vmaff'; known: psnr"), ("ssim,cvvdp", "pip install 'vaccel[qu")):
            command = ["compare", "/nowhere", "-m", "steps(2)", "-p", "x", "--out", str(tmp_path / "out")]
            result = CliRunner().invoke(app, [*command, "--metrics", name])
            assert result.exit_code == 2
            assert said in " ".join(result.output.split())
        with pytest.raises(ValueError, match="unknown metric ''"):
            fidelity.chosen(["psnr", ""])


@pytest.mark.skipif(perceptual.cvvdp_missing() != "", reason=perceptual.cvvdp_missing())
def test_cvvdp_is_ten_for_equal_clips_and_falls_with_noise():
    for clip in (moving(3), moving(1)):
        errors = noise(clip.shape, 1)
        found = [perceptual.cvvdp(clip, np.clip(clip + s * errors, 0, 1)) for s in (0, 0.01, 0.03, 0.1)]
        assert found[0] == 10
        assert found == sorted(found, reverse=True)
        assert found[-1] < 9, "one JOD at 20 dB"


def compared(pipe, folder=None, specs=(OURS, SAME), call=CALL, **options):
    log = folder / "rows.jsonl" if folder is not None else None
    return compare(pipe, [parse_contender(s) for s in specs], ["a red cat"], call=call, log=log, **options)


class TestComparison:
    def test_rows_summary_and_page_have_the_metrics(self, wan, tmp_path):
        result = compared(wan, tmp_path, metrics=["ssim", "flicker", "vmaf"])
        ours, same = result.rows
        full = result.clips["full", "a red cat", 0]
        assert ours.flicker == metrics.flicker(full, result.clips[OURS, "a red cat", 0]) > 0
        assert ours.vmaf == vmaf.vmaf(full, result.clips[OURS, "a red cat", 0])
        assert (same.flicker, ours.cvvdp, ours.lpips, ours.snr) == (0, None, None, None)
        assert [json.loads(line)["flicker"] for line in (tmp_path / "rows.jsonl").open()] == [ours.flicker, 0]
        assert [metric.name for metric in result.columns()] == ["psnr", "ssim", "vmaf", "flicker"]
        page = write_report(result, tmp_path, title="t", facts={}).read_text()
        for text in ("VMAF</th>", "flicker</th>", f"{ours.flicker:.2f}", f"({ours.vmaf:.1f})"):
            assert text in page
        assert ">JOD<" not in page.replace("<b>JOD</b>", "")
        assert "<b>JOD</b> left out: " in page
        found = json.loads((tmp_path / "report.json").read_text())
        assert found["summary"][0]["vmaf_worst"] == ours.vmaf
        assert set(found["left_out"]) == {"lpips", "cvvdp"}
        assert result.complete
        assert not result.notes

    def test_the_table_shows_every_column_on_a_narrow_console(self, wan):
        result = compared(wan, specs=[OURS], checker=lambda clip, prompt: {"caption": 1.0})
        for row in result.rows:  # as if all were installed
            row.lpips, row.vmaf, row.cvvdp = 0.125, 98.76, 9.87
        console = Console(width=80, file=io.StringIO())
        console.print(summary_table(result))
        shown = console.file.getvalue()
        assert shown.split()[:3] == ["method", "speedup", "forwards"]
        for text in ("PSNR", "SSIM", "LPIPS", "VMAF", "flicker", "JOD", "caption", "98.8", "(98.8)", "0.125", "100%"):
            assert text in shown

    def test_the_worst_is_the_lowest_or_the_highest(self):
        assert fidelity.METRICS["vmaf"].of_rows([90.0, 70.0]) == (80, 70)
        assert fidelity.METRICS["flicker"].of_rows([1.0, 3.0]) == (2, 3)
        assert fidelity.METRICS["psnr"].of_rows([math.inf, 40.0]) == (70, 40)

    def test_rows_of_before_still_count(self, wan, tmp_path):
        first = compared(wan, tmp_path, specs=[OURS])
        path = tmp_path / "rows.jsonl"
        line = json.loads(path.read_text())
        for name in ("vmaf", "flicker", "cvvdp", "snr"):
            del line[name]
        path.write_text(json.dumps(line) + "\n")
        again = compared(wan, tmp_path, metrics=["flicker"])
        assert (again.rows[0].psnr, again.rows[0].flicker) == (first.rows[0].psnr, None)
        assert again.rows[1].flicker == 0
        assert again.summary()[0]["flicker"] is None
        assert "--restart" in again.left_out()["flicker"]
        page = write_report(again, tmp_path, title="t", facts={}).read_text()
        assert "1 rows were measured without it" in page

    def test_a_metric_that_fails_is_noted_and_ends_nothing(self, wan, ffmpeg):
        ffmpeg("echo ' .. libvmaf V'; echo 'no such model' >&2; exit 1")
        result = compared(wan, metrics=["vmaf", "ssim"])
        assert [row.vmaf for row in result.rows] == [None, None]
        assert all(row.ssim is not None for row in result.rows)
        assert result.notes == ["VMAF could not be measured: RuntimeError: ffmpeg measured no VMAF: no such model"]

    def test_unknown_metrics_are_refused_before_anything_runs(self, wan):
        ran = []
        with pytest.raises(ValueError, match="unknown metric"):
            compared(wan, metrics=["beauty"], progress=lambda *what: ran.append(what))
        assert ran == []

    def test_infinities_are_read_back(self):
        row = {"prompt": "", "seed": 0, "contender": "", "seconds": 1.0, "full_seconds": 1.0, "timeline": ""}
        row |= {"psnr": None, "ssim": None, "lpips": None, "peak_bytes": 0, "checks": {}, "forwards": {}}
        for value in (math.inf, -math.inf, 20.5):
            assert row_of(json.loads(json.dumps(finite({**row, "snr": value})))).decibels == value
        assert row_of({**row, "snr": None}) is None
        assert row_of(row) is None


AUDIO = {"negative_prompt": "a blue dog", "audio_end_in_s": 1.5, "guidance_scale": 7.0, "num_inference_steps": 6}
SPECS = ("steps(4)", "Schedule([0,1,3,5], num_steps=6)", "Schedule([0,1,2,3,4,5], num_steps=6)")


class TestSound:
    """Stable Audio of genuine classes, made tiny."""

    @pytest.fixture
    def pipe(self):
        from zoo import audio

        return audio.stable()

    def test_a_pipeline_of_sound_is_compared_by_snr(self, pipe, tmp_path):
        result = compared(pipe, tmp_path, SPECS, AUDIO)
        full = result.clips["full", "a red cat", 0]
        assert clips.is_sound(full)
        assert result.rate == pipe.vae.config.sampling_rate
        found = {row.contender: row for row in result.rows}
        for spec in SPECS:
            assert found[spec].snr == metrics.snr(full, result.clips[spec, "a red cat", 0])
            assert (found[spec].psnr, found[spec].vmaf) == (None, None)
        assert found[SPECS[-1]].snr == math.inf
        assert -100 < found[SPECS[0]].snr < 100
        assert [metric.name for metric in result.columns()] == ["snr"]
        page = write_report(result, tmp_path, title="t", facts={}).read_text()
        assert page.count("<audio") == 4 + 2 * 2, "four sounds, and two pairs where it fails"
        assert "SNR dB</th>" in page
        assert "PSNR" not in page
        assert not list(tmp_path.glob("contact_sheet*"))

    def test_it_goes_on_where_it_stopped(self, pipe, tmp_path):
        first = compared(pipe, tmp_path, SPECS[:2], AUDIO)
        again = compared(pipe, tmp_path, SPECS[:2], AUDIO)
        assert [row.snr for row in again.rows] == [row.snr for row in first.rows]
        for key, sound in first.clips.items():  # kept in 16 bits
            assert np.abs(again.clips[key] - np.clip(sound, -1, 1)).max() <= 0.5 / 32767 + 1e-6

    def test_a_sound_as_a_wav_file(self):
        sound = np.array([[0, 0.5, -1, 2], [1, np.nan, 0, 0]], dtype=np.float32)
        data_ = base64.b64decode(clips.sound_uri(sound, 8000).removeprefix("data:audio/wav;base64,"))
        with wave.open(io.BytesIO(data_)) as read:
            assert (read.getnchannels(), read.getframerate(), read.getnframes()) == (2, 8000, 4)
            frames = np.frombuffer(read.readframes(4), dtype="<i2").reshape(4, 2).T
        assert frames.tolist() == [[0, 16384, -32767, 32767], [32767, 0, 0, 0]]
