"""A method for some requests alone, and what is told of every run: log, listeners, counters."""

from __future__ import annotations

import copy
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
from diffusers import WanPipeline

import vaccel
from vaccel.engine.report import RunReport
from vaccel.engine.trace import StepRecord, Trace

STEPS = 12
OTHER = vaccel.Schedule(range(0, STEPS, 3), num_steps=STEPS, reuse="residual")
METHOD = vaccel.Schedule([0, 1, 4, 8], num_steps=STEPS, reuse="forecast")


def alone(method, **options):
    pipe = tiny.wan_pipeline()
    with vaccel.accelerate(pipe, method, **options):
        return tiny.latents(pipe, steps=STEPS)


@pytest.fixture
def pipe():
    return tiny.wan_pipeline()


# -- handle.using ------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_a_request_takes_another_method(pipe):
    plain = tiny.latents(pipe, steps=STEPS)
    expected, other = alone(METHOD), alone(OTHER)
    handle = vaccel.accelerate(pipe, METHOD)
    with handle.using(OTHER):
        assert torch.equal(tiny.latents(pipe, steps=STEPS), other)
        assert handle.trace.timeline() == "Frr" * 4
        with handle.using(None):
            assert torch.equal(tiny.latents(pipe, steps=STEPS), plain)
            assert len(handle.traces) == 1, "a plain call is no run"
        assert torch.equal(tiny.latents(pipe, steps=STEPS), other)
    assert torch.equal(tiny.latents(pipe, steps=STEPS), expected)
    assert handle.method == METHOD
    handle.remove()
    assert torch.equal(tiny.latents(pipe, steps=STEPS), plain)


def test_one_that_fails_gives_the_method_back(pipe):
    handle = vaccel.accelerate(pipe, METHOD)
    with pytest.raises(KeyError), handle.using(OTHER):
        raise KeyError
    tiny.latents(pipe, steps=STEPS)
    assert handle.trace.timeline() == "FFppFpppFppp"


def test_threads_choose_for_themselves(pipe):
    expected = {method: alone(method) for method in (METHOD, OTHER)}
    handle = vaccel.accelerate(pipe, METHOD)
    both = threading.Barrier(2, timeout=60)

    def request(method):
        own = copy.copy(pipe)
        own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        both.wait()
        if method is METHOD:
            return torch.equal(tiny.latents(own, steps=STEPS), expected[method])
        with handle.using(method):
            return torch.equal(tiny.latents(own, steps=STEPS), expected[method])

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(request, (METHOD, OTHER)))


def test_a_method_with_a_small_model(pipe):
    method = vaccel.DirectionMagnitude(threshold=0.01)
    expected = alone(method, small=tiny.wan_small())
    handle = vaccel.accelerate(pipe, METHOD)
    with pytest.raises(ValueError, match="needs the small model of the family: pass small"):
        handle.using(method)
    with handle.using(method, small=tiny.wan_small()):
        assert torch.equal(tiny.latents(pipe, steps=STEPS), expected)
    handle.remove()
    handle = vaccel.accelerate(pipe, method, small=tiny.wan_small())
    with handle.using(OTHER):
        assert torch.equal(tiny.latents(pipe, steps=STEPS), alone(OTHER))
    with handle.using(vaccel.DirectionMagnitude(threshold=0.0)):
        tiny.latents(pipe, steps=STEPS)
        assert handle.trace.calls["small"] > 0, "it takes the pipeline's own"


@pytest.mark.fast
def test_what_cannot_be_used_is_refused(pipe):
    handle = vaccel.accelerate(pipe, METHOD)
    with pytest.raises(ValueError, match="must be a vaccel method"):
        handle.using("TeaCache")
    with pytest.raises(ValueError, match="changes the pipeline's weights"):
        handle.using(vaccel.DualExpert("experts"))
    assert len(handle._session._pilots) == 0
    for speed in range(100):
        handle.using(vaccel.Auto(speedup=1.1 + speed))
    assert len(handle._session._pilots) <= 64, "a server may ask for any speed"
    with handle.using(vaccel.Schedule([0, 2], num_steps=5)), pytest.raises(ValueError, match="5 steps"):
        tiny.latents(pipe, steps=STEPS)
    handle.remove()
    for call in (lambda: handle.using(OTHER), lambda: handle.on_run(print)):
        with pytest.raises(RuntimeError, match="the handle was removed"):
            call()


def test_auto_goes_on_learning_from_its_requests(pipe, tmp_path):
    auto = vaccel.Auto(speedup=2.0, folder=str(tmp_path))
    handle = vaccel.accelerate(pipe, METHOD)
    for _ in range(2):
        with handle.using(auto):
            tiny.latents(pipe, steps=STEPS)
    (pilot,) = handle._session._pilots.values()
    assert len(pilot._times["full"]) == 2


# -- on_run ------------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_a_run_is_told_of(pipe, caplog):
    handle, told = vaccel.accelerate(pipe, METHOD), []
    off = handle.on_run(told.append)
    with caplog.at_level(logging.INFO, "vaccel"):
        tiny.latents(pipe, steps=STEPS)
    (report,) = told
    assert (report.pipeline, report.method, report.computed, report.skipped) == ("WanPipeline", "schedule", 4, 8)
    assert report.trace is handle.trace
    assert report.trace.finished
    assert len(report.step_seconds) == STEPS
    assert 0 < sum(report.step_seconds) <= report.seconds
    full = sorted(s for s, r in zip(report.step_seconds, report.trace.steps, strict=True) if r.action.is_full)
    skipped = [s for s, r in zip(report.step_seconds, report.trace.steps, strict=True) if not r.action.is_full]
    assert report.saved_seconds == pytest.approx(8 * (full[1] + full[2]) / 2 - sum(skipped))
    counts = report.counts()
    assert (counts["vaccel.runs"], counts["vaccel.runs.aborted"], counts["vaccel.forwards.large"]) == (1, 0, 8)
    assert report.attributes == {"pipeline": "WanPipeline", "method": "schedule"}
    assert [r.getMessage() for r in caplog.records] == [str(report)]
    assert "WanPipeline: schedule, 4 of 12 steps computed, " in str(report)
    off()
    off()
    tiny.latents(pipe, steps=STEPS)
    assert len(told) == 1


def test_nobody_is_told_where_nobody_asks(pipe, caplog):
    handle = vaccel.accelerate(pipe, METHOD)
    with caplog.at_level(logging.WARNING, "vaccel"):
        tiny.latents(pipe, steps=STEPS)
    assert caplog.records == []
    assert handle.trace.finished


def test_an_aborted_run_is_told_of(pipe):
    handle, told = vaccel.accelerate(pipe, METHOD), []
    handle.on_run(told.append)

    def stop(pipe, step, t, kwargs):
        if step == 4:
            raise KeyboardInterrupt
        return kwargs

    with pytest.raises(KeyboardInterrupt):
        tiny.latents(pipe, steps=STEPS, callback_on_step_end=stop)
    (report,) = told
    assert (report.error, report.trace.finished, len(report.trace.steps)) == ("KeyboardInterrupt", False, 5)
    assert report.counts()["vaccel.runs.aborted"] == 1
    assert "stopped at step 5 by KeyboardInterrupt" in str(report)
    assert report.saved_seconds is None


def test_a_listener_that_fails_harms_no_run(pipe, caplog):
    plain = alone(METHOD)
    handle, told = vaccel.accelerate(pipe, METHOD), []

    def fails(report):
        raise ValueError("the collector is down")

    handle.on_run(fails)
    handle.on_run(told.append)
    assert torch.equal(tiny.latents(pipe, steps=STEPS), plain)
    assert len(told) == 1
    assert "the collector is down" in caplog.text


def test_prediction_and_guard_are_told(pipe):
    handle, told = vaccel.accelerate(pipe, vaccel.Auto(psnr=20, guard=1e6)), []
    handle.on_run(told.append)
    tiny.latents(pipe, steps=30)
    (report,) = told
    assert {"error", "psnr", "psnr_low"} <= report.predicted.keys()
    assert "dB predicted (19 in 20 above" in str(report)
    assert report.predicted == report.trace.predicted


def test_fallbacks_are_counted():
    from vaccel.actions import Full, Residual

    why, lost = "computed in full: no residual", "vaccel: it cannot be followed; computed in full"
    steps = [StepRecord(0, Full(), {}), StepRecord(1, Full(), {}, why), StepRecord(2, Residual(), {}),
             StepRecord(3, Full(), {}, why)]  # fmt: skip
    report = RunReport("P", Trace({"method": "schedule"}, 4, steps, [lost], True), 4.0, (1.0, 2.0, 0.5, 3.0))
    assert report.fallbacks == {why: 2, lost: 1}
    assert report.saved_seconds == 1.5
    assert report.counts()["vaccel.fallbacks"] == 3


def test_every_loop_of_a_call_is_told_of(pipe):
    class Twice(WanPipeline):
        def __call__(self, *args, **kwargs):
            super().__call__(*args, **kwargs)
            return super().__call__(*args, **kwargs)

    pipe.__class__ = Twice
    handle, told = vaccel.accelerate(pipe, METHOD), []
    handle.on_run(told.append)
    tiny.latents(pipe, steps=STEPS)
    assert [report.trace for report in told] == handle.traces
    assert [report.computed for report in told] == [4, 4]
