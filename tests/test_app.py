"""``vaccel app``: the studio without a browser, the page's endpoint, and the page in Chromium."""

from __future__ import annotations

import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from typer.testing import CliRunner

from vaccel.app import Cancelled, Job, Made, Request, Studio, shown, studio_of
from vaccel.cli import app
from vaccel.cli.loading import Loaded
from vaccel.evaluate import parse_contender

ROOT = Path(__file__).resolve().parent.parent
#: Where to write the documentation's picture; it shows a run of 50 steps.
PICTURE = os.environ.get("VACCEL_APP_PICTURE")
STEPS = 50 if PICTURE else 5
PROMPT = "a red circle moves left slowly on a gray background"


@pytest.fixture(scope="module")
def studio():
    made = studio_of(Loaded("demo", None, None, "float32"), steps=STEPS)
    yield made
    made.close(60)


@pytest.fixture(scope="module")
def first(studio):
    """The result of a first request."""
    return studio.submit(studio.request(PROMPT, 0, STEPS, 2)).wait(120)


def plain(studio, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = studio.pipe(PROMPT, num_inference_steps=STEPS, generator=generator, output_type="np", **studio.call)
    return np.asarray(made.frames[0])


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


# -- the studio ------------------------------------------------------------------------------------------------------


def test_both_clips_and_what_is_said_of_them(studio, first):
    assert first.full.shape == first.fast.shape == studio.shape == (17, 48, 48, 3)
    assert not first.kept
    assert 10 < first.psnr < 100
    assert first.computed == (first.trace.timeline().count("F"), STEPS)
    assert first.computed[0] < STEPS
    numbers = first.numbers()
    assert numbers["speedup"] == pytest.approx(first.full_seconds / first.fast_seconds, abs=1e-3)
    assert set(numbers["predicted"]) == {"error", "psnr", "psnr_low"}
    assert any("2x asked for" in note for note in first.trace.notes)


def test_the_pipeline_is_as_it_was(studio, first):
    assert type(studio.pipe).__module__.startswith("diffusers")
    np.testing.assert_array_equal(plain(studio), first.full)


def test_moving_the_slider_makes_the_fast_clip_alone(studio, first):
    request = studio.request(f"  {PROMPT}\n", 0, STEPS, 1)
    assert studio.keeps(request)
    assert not studio.keeps(studio.request(PROMPT, 1, STEPS, 1))
    made = studio.submit(request).wait(60)
    assert made.kept
    assert made.full is first.full
    assert made.computed == (STEPS, STEPS)
    np.testing.assert_array_equal(made.fast, made.full)  # at 1 all steps are computed
    assert made.numbers()["psnr"] == "equal"


def test_another_method_than_the_sliders(studio, first, monkeypatch):
    monkeypatch.setitem(studio.methods, "steps(2)", parse_contender("steps(2)"))
    made = studio.submit(studio.request(PROMPT, 0, STEPS, 1, "steps(2)")).wait(60)
    assert (made.label, made.trace, made.computed, made.kept) == ("steps(2)", None, None, True)
    assert "asked for" not in shown.figures_html(made)


@pytest.mark.parametrize(("changed", "said"), [
    ({"prompt": "  \n"}, "prompt is empty"), ({"prompt": None}, "prompt is empty"), ({"prompt": "a" * 5000}, "5000"),
    ({"steps": 0}, "from 1 to 200"), ({"steps": 201}, "from 1 to 200"), ({"steps": 2.5}, "whole number"),
    ({"seed": float("nan")}, "seed"), ({"seed": float("inf")}, "seed"), ({"seed": None}, "there is none"),
    ({"seed": -1}, "seed"), ({"seed": "0"}, "seed"), ({"seed": True}, "seed"), ({"speed": 4.5}, "from 1 to 4"),
    ({"speed": float("nan")}, "speed"), ({"method": "Magic"}, "none of Auto"),
])  # fmt: skip
def test_bad_input_says_what_to_change(studio, changed, said):
    asked = {"prompt": PROMPT, "seed": 0, "steps": STEPS, "speed": 2, **changed}
    with pytest.raises(ValueError, match=said):
        studio.request(**asked)


def test_one_at_a_time_and_each_can_be_cancelled(studio):
    long = studio.submit(studio.request(PROMPT, 7, 200, 2), "one")
    until(lambda: long.done > 0)
    waiting, other = (studio.submit(studio.request(PROMPT, 0, STEPS, 2), owner) for owner in ("two", "three"))
    assert (waiting.status, studio.before(waiting), studio.before(other)) == ("waiting", 1, 2)
    assert "Waiting: 1 request is before" in shown.progress_html(waiting, 1)
    assert studio.cancel("two") == 1
    assert waiting.status == "cancelled"
    assert studio.before(other) == 1
    assert long.total == 200
    assert "full model: step" in shown.progress_html(long, 0)
    assert studio.cancel("one") == 1
    assert "Stopping" in shown.progress_html(long, 0)
    for job in (long, waiting):
        with pytest.raises(Cancelled):
            job.wait(60)
    assert other.wait(60).trace.finished
    assert not studio.pending("three")
    assert studio.cancel("nobody") == 0


def test_cancelled_in_the_fast_run_the_pipeline_is_as_it_was(studio, first):
    job = Job(studio.request(PROMPT, 0, STEPS, 2), "one")
    job.tell = lambda done, total: job.cancel()
    with pytest.raises(Cancelled):
        studio._made(job)
    assert job.what == "Auto(speedup=2)"
    np.testing.assert_array_equal(plain(studio), first.full)


def test_what_fails_is_said_and_the_next_one_runs(studio, monkeypatch):
    monkeypatch.setattr(studio.pipe.vae, "decode", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("a cable broke")))
    job = studio.submit(studio.request(PROMPT, 0, STEPS, 2))
    with pytest.raises(RuntimeError, match="a cable broke"):
        job.wait(60)
    assert (job.status, job.error) == ("failed", "RuntimeError: a cable broke")
    monkeypatch.undo()
    assert studio.submit(studio.request(PROMPT, 0, STEPS, 2)).wait(60).kept


def test_clips_make_room_for_others(studio, first, monkeypatch):
    monkeypatch.setattr("vaccel.app.studio.KEPT_BYTES", first.full.nbytes * 2)
    for seed in (11, 12):
        studio._keep(studio._key(studio.request(PROMPT, seed, STEPS, 2)), (first.full, 1.0))
    kept = [studio.keeps(studio.request(PROMPT, seed, STEPS, 2)) for seed in (0, 11, 12)]
    assert kept == [False, True, True]


def test_the_demo_says_which_words_it_never_saw(studio):
    assert studio.hint(PROMPT) == ""
    assert "never seen: fox, walks" in studio.hint("a red fox walks on a gray background")


def test_an_image_is_a_clip_of_one_frame():
    call = {name: value for name, value in tiny.QWEN_CALL.items() if name != "output_type"}
    studio = Studio(tiny.qwen_pipeline(), call, steps=10)
    made = studio.submit(studio.request("a red fox", 0, 10, 2)).wait(60)
    studio.close(60)
    assert made.full.shape[0] == 1
    assert "p" in made.trace.timeline()
    page = shown.clips_html(made)
    assert page.count("<img") == 3
    assert "vaccel-pause" not in page
    with pytest.raises(RuntimeError, match="closed"):
        studio.submit(made.request)


def test_what_makes_no_pictures_is_refused_at_the_start():
    from zoo import audio

    with pytest.raises(ValueError, match="makes sound"):
        Studio(audio.stable(), {"audio_end_in_s": 1.5}, steps=4)


def test_what_takes_no_prompt_is_refused_at_the_start():
    class Unprompted(type(tiny.wan_pipeline())):
        def __call__(self, class_labels, num_inference_steps=50):
            pytest.fail("it was called")

    pipe = tiny.wan_pipeline()
    pipe.__class__ = Unprompted
    with pytest.raises(ValueError, match="takes no prompt"):
        Studio(pipe, steps=4)


# -- what is shown ---------------------------------------------------------------------------------------------------


def result(shape=(3, 8, 8, 3), label="Auto(speedup=2)", prompt="<b>&", **changes):
    full = np.full(shape, 0.5, dtype=np.float32)
    fast = full.copy()
    fast.flat[0] = 0.6
    fields = {"request": Request(prompt, 0, 4, 2.0), "full": full, "fast": fast, "full_seconds": 2.0,
              "fast_seconds": 1.0, "kept": False, "label": label, "traces": (), "fps": 12.0, **changes}  # fmt: skip
    return Made(**fields)


def test_small_clips_are_played_from_one_picture_and_large_ones_are_videos():
    small = shown.clips_html(result(label="<script>"))
    assert small.count("steps(3, jump-none)") == small.count("data:image/png") == 3
    assert "<script>" not in small
    large = shown.clips_html(result((2, 16, 9000, 3)))
    assert large.count("<video") == large.count("data:video/mp4") == 3
    assert large.count("muted") == 3
    assert large.count(" controls") == 1  # which the others follow


def test_figures_stand_beside_what_was_asked_for():
    page = shown.figures_html(result())
    assert "2.00x" in page
    assert "2x asked for" in page
    assert "nothing predicted it" in page
    assert "No trace" in shown.trace_html(result())
    assert "PSNR, measured</span><b>equal" in shown.figures_html(result(fast=np.full((3, 8, 8, 3), 0.5, np.float32)))


def test_errors_are_escaped():
    assert shown.note_html("<i>", error=True) == '<div class="vaccel-note vaccel-error" role="alert">&lt;i&gt;</div>'
    job = Job(Request(PROMPT, 0, 4, 2.0), "")
    job.status, job.what = "running", "<i>"
    assert "&lt;i&gt;: sampling<progress aria" in shown.progress_html(job, 0)


# -- the command -----------------------------------------------------------------------------------------------------


def test_a_missing_gradio_is_said_with_what_brings_it():
    code = "import sys; sys.modules['gradio'] = None; from vaccel.__main__ import main; main()"
    said = subprocess.run([sys.executable, "-c", code, "app", "--no-open"], capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert "needs gradio: pip install 'vaccel[app]'" in said.stderr
    assert "Traceback" not in said.stderr


def test_the_command_serves_what_it_was_asked_for(monkeypatch):
    served = {}
    monkeypatch.setattr("vaccel.app.page.serve", lambda studio, **options: served.update(studio=studio, **options))
    monkeypatch.setattr("vaccel.app.studio.tried", lambda *run: (17, 48, 48, 3))
    monkeypatch.setattr("vaccel.app.studio.begun", lambda *run: None)
    words = ["app", "--steps", "4", "--port", "7999", "--no-open", "-p", PROMPT, "-m", "steps(2)", "--fps", "7"]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    studio = served.pop("studio")
    assert served == {"host": "127.0.0.1", "port": 7999, "share": False, "open": False}
    assert (studio.steps, studio.examples, list(studio.methods), studio.fps) == (4, [PROMPT], ["Auto", "steps(2)"], 7)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = CliRunner().invoke(app, ["app", "--port", str(port)])
    assert said.exit_code == 2
    assert f"127.0.0.1:{port}" in said.output
    missing = CliRunner().invoke(app, ["app", "--pipeline", str(ROOT / "nowhere")], env={"HF_HUB_OFFLINE": "1"})
    assert missing.exit_code == 2
    assert "error: " in missing.output


def test_the_space_serves_the_demo(monkeypatch):
    served = []
    monkeypatch.setattr("vaccel.app.page.serve", lambda studio, **options: served.append((studio, options)))
    monkeypatch.setattr("vaccel.app.Studio.__init__", lambda self, pipe, call, **given: setattr(self, "given", given))
    runpy.run_path(str(ROOT / "integrations" / "space" / "app.py"), run_name="__main__")
    ((studio, options),) = served
    assert studio.given["name"] == "demo"
    assert options == {}
    front = (ROOT / "integrations" / "space" / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in front
    assert "app_file: app.py" in front


# -- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere():
    """Addresses outside this machine that somebody in this process tried to reach."""
    tried, own = [], socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            tried.append(address)
            raise OSError("the tests need no network")
        return own(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", connect)
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    assert tried.pop() == ("192.0.2.1", 80)
    yield tried
    patch.undo()


@pytest.fixture(scope="module")
def served(studio, elsewhere):
    from vaccel.app import page

    blocks = page.serve(studio, host="127.0.0.1", wait=False)
    yield blocks.local_url
    blocks.close(verbose=False)


def test_the_endpoint(studio, first, served, elsewhere):
    from gradio_client import Client

    client = Client(served, verbose=False, analytics_enabled=False)
    _status, clips, _figures, trace, numbers = client.predict(PROMPT, 0, STEPS, 2, "Auto", api_name="/run")
    assert numbers["timeline"] == first.trace.timeline()
    assert numbers["steps"] == STEPS
    assert "<svg" in str(trace)
    assert str(clips).count("<figure>") == 3
    *_, numbers = client.predict(" ", 0, STEPS, 2, "Auto", api_name="/run")
    assert numbers["error"].startswith("The prompt is empty")
    *_, numbers = client.predict(PROMPT, 0, 100_000, 2, "Auto", api_name="/run")
    assert "from 1 to 200" in numbers["error"]
    running = client.submit(PROMPT, 21, 200, 2, "Auto", api_name="/run")
    until(lambda: any(job.done for job in studio._jobs))
    second = client.submit(PROMPT, 0, STEPS, 2, "Auto", api_name="/run")
    until(lambda: len(studio._jobs) == 2)
    client.predict(api_name="/stop")
    for job in (running, second):
        assert job.result(timeout=60)[-1]["error"].startswith("Stopped")
    assert elsewhere == []


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return os.environ.get("VACCEL_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser():
    if chromium() is None:
        pytest.skip("no Chromium is installed: it is looked for on the PATH, or VACCEL_CHROMIUM names it")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright, which drives Chromium, is not installed")
    with driver.sync_playwright() as playing:
        opened = playing.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


def test_the_page_in_chromium(studio, served, browser, tmp_path, elsewhere):
    page = browser.new_page(viewport={"width": 1280, "height": 900}, device_scale_factor=1)
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(served)
    page.get_by_label("Prompt").fill("a green square moves up quickly on a striped background")
    page.get_by_role("button", name="Make both").click()
    page.locator("#clips figure").nth(2).wait_for(timeout=300_000 if PICTURE else 60_000)
    page.locator("#trace svg").wait_for()
    assert page.locator(".vaccel-strip").count() == 3
    made = next(reversed(studio._kept))
    assert made[0] == "a green square moves up quickly on a striped background"
    assert page.locator(".vaccel-tile b").nth(2).inner_text().endswith(f"of {STEPS}")
    assert "Forecast(" in page.locator(".vaccel-said").inner_text()
    playing = "e => getComputedStyle(e).backgroundPositionX"
    page.locator(".vaccel-strip").first.evaluate("e => e.scrollIntoView({block: 'center'})")
    together = page.evaluate(f"[...document.querySelectorAll('.vaccel-strip')].map({playing})")
    assert len(set(together)) == 1  # the same frame of all
    page.wait_for_function(
        f"before => ({playing})(document.querySelector('.vaccel-strip')) !== before", arg=together[0]
    )
    if PICTURE:
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=PICTURE, full_page=True)
    kept = len(studio._kept)
    page.locator("#speed").scroll_into_view_if_needed()
    end = page.locator("#speed input[type=range]").bounding_box()
    page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"], end["y"] + end["height"] / 2)
    page.mouse.up()
    page.locator("#clips figcaption").filter(has_text="all steps computed").wait_for()
    assert page.locator(".vaccel-tile b").nth(1).inner_text() == "equal"
    assert len(studio._kept) == kept  # the fast clip alone was made
    page.get_by_label("Prompt").fill(" ")
    page.get_by_role("button", name="Make both").click()
    page.get_by_role("alert").filter(has_text="The prompt is empty").wait_for()
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
    assert wrong == []
    hosts = {url.split("/")[2] for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {served.split("/")[2]}
    assert elsewhere == []


def test_stop_and_a_closed_tab_end_a_run(studio, served, browser):
    page = browser.new_page()
    page.goto(served)
    page.get_by_label("Steps").fill("200")
    page.get_by_role("button", name="Make both").click()
    page.locator("#status progress").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped: the pipeline is as it was.").wait_for()
    page.get_by_role("button", name="Make both").click()
    page.locator("#status progress").wait_for()
    page.close()
    until(lambda: not studio._jobs)
    assert type(studio.pipe).__module__.startswith("diffusers")
