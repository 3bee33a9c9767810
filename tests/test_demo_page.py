"""``vaccel demo``: a page that begins with the pictures, whole or interrupted, with nothing outside it."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser

import imageio.v3 as iio
import numpy as np
import pytest
from typer.testing import CliRunner

from vaccel.cli import app
from vaccel.demo import family
from vaccel.demo.shapes import HEIGHT, NUM_FRAMES, WIDTH
from vaccel.evaluate import pictures

compare_module = sys.modules["vaccel.evaluate.compare"]
STEPS = 4


def demo(out, *more: str):
    arguments = ["demo", "--out", str(out), "--steps", str(STEPS), *more]
    return CliRunner().invoke(app, arguments)


class Page(HTMLParser):
    """The elements of a page in their order, as (tag, attributes)."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def first(self, tag: str) -> int:
        return [name for name, _ in self.elements].index(tag)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The output and the folder of a demo of two captions."""
    out = tmp_path_factory.mktemp("demo")
    result = demo(out, "--count", "2")
    assert result.exit_code == 0, result.output
    return result.output, out


@pytest.fixture(scope="module")
def text(made):
    return (made[1] / "report.html").read_text()


def test_help_helps():
    result = CliRunner().invoke(app, ["demo", "--help"])
    assert result.exit_code == 0
    assert "side by side" in result.output


def test_json_and_lines_of_progress(made):
    said, out = made
    data = json.loads((out / "report.json").read_text())
    assert data["complete"] is True
    assert [entry["contender"] for entry in data["summary"]] == list(family.SHOWN)
    assert [entry["runs"] for entry in data["summary"]] == [2] * len(family.SHOWN)
    # Which run a line comes in is a matter of time; that lines come, and of how many steps, is not.
    assert re.search(rf"^\d+/{2 * (1 + len(family.SHOWN)) * STEPS} [a-zA-Z]", said, re.M)
    assert f"report: {out / 'report.html'}" in said


def test_a_captions_runs_are_timed_beside_one_full_run(made):
    rows = json.loads((made[1] / "report.json").read_text())["rows"]
    for prompt in {row["prompt"] for row in rows}:
        assert len({row["full_seconds"] for row in rows if row["prompt"] == prompt}) == 1


def test_clips_come_before_curve_and_table(text):
    page = Page(text)
    assert page.first("canvas") < page.first("svg") < page.first("table")
    each = 1 + 2 * len(family.SHOWN)  # the full model's clip; of the others also the difference
    assert len(page.all("img")) == 2 * each
    assert len(page.all("canvas")) == 2 * (each + 2)  # and two that the slider wipes between
    assert {canvas["data-strip"] for canvas in page.all("canvas")} == {img["id"] for img in page.all("img")}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes and "<" not in attributes["id"]]
    assert len({i for i in ids if i.startswith("clip")}) == 2 * each


def test_everything_is_in_the_page(text):
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed")
        for name in ("src", "srcset", "poster", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:")
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert not re.search(r"url\((?!#|data:)|@import|fetch\(|XMLHttpRequest|import\(", text)


def test_strips_hold_every_frame_as_it_was_made(text, made):
    strips = {img["id"]: img["src"] for img in Page(text).all("img")}
    head, data = strips["clip-0-1"].split(",")
    assert head == "data:image/png;base64"
    picture = iio.imread(io.BytesIO(base64.b64decode(data)))
    assert picture.shape == (HEIGHT, WIDTH * NUM_FRAMES, 3)
    frames = np.stack(np.split(picture, NUM_FRAMES, axis=1))
    assert any(np.array_equal(frames, np.load(kept)) for kept in (made[1] / "clips").glob("*.npy"))


def test_what_can_be_operated_has_a_name(text):
    page = Page(text)
    for attributes in (*page.all("input"), *(c for c in page.all("canvas"))):
        assert attributes["aria-label"].strip()
    assert page.all("html")[0]["lang"] == "en"
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in page.all("meta")[1]["content"]


def test_a_difference_is_amplified_and_zero_where_there_is_none():
    clip = np.full((2, 3, 4, 3), 0.5, dtype=np.float32)
    other = clip.copy()
    other[0, 0, 0, 0] += 0.03
    other[1, 2, 3, 2] = 0
    made = pictures.difference(clip, other)
    assert made[0, 0, 0, 0] == pytest.approx(0.24, abs=1e-6)
    assert made[1, 2, 3, 2] == 1
    assert (made > 0).sum() == 2


def test_interrupted_it_leaves_a_page_and_goes_on(tmp_path, monkeypatch):
    own, runs = compare_module._run, []

    def stopped(*arguments):
        runs.append(arguments)
        if len(runs) == 3:  # the full model and the first contender are done
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(compare_module, "_run", stopped)
    result = demo(tmp_path, "--count", "1")
    assert result.exit_code == 130
    assert "the same command goes on" in " ".join(result.output.split())
    text = (tmp_path / "report.html").read_text()
    assert "Stopped before the end" in text
    assert {img["id"] for img in Page(text).all("img")} == {"clip-0-0", "clip-0-1", "clip-0-1-difference"}
    assert json.loads((tmp_path / "report.json").read_text())["complete"] is False

    result = demo(tmp_path, "--count", "1")
    assert result.exit_code == 0, result.output
    assert len(runs) == 3 + 1 + 2  # the full model once more, for the others to be timed beside, and the two others
    assert json.loads((tmp_path / "report.json").read_text())["complete"] is True


def test_interrupted_before_any_clip_it_leaves_a_page(tmp_path, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_module, "_run", stopped)
    assert demo(tmp_path, "--count", "1").exit_code == 130
    assert "No clip was finished" in (tmp_path / "report.html").read_text()


def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("vaccel.cli.loading.Loaded", lambda *arguments: pytest.fail("the pipeline was loaded"))
    result = demo(tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "error: " in result.output
    assert demo(tmp_path / "out", "--count", "0").exit_code == 2
