"""Old names work, say what the new ones are, and are gone when they were said to be."""

from __future__ import annotations

import warnings

import pytest
import tiny

import vaccel
from vaccel.calibrate import calibrate_lemica
from vaccel.deprecated import RENAMED, note
from vaccel.planning.prior import shipped


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def lemica(tmp_path, **given):
    call = {**tiny.WAN_CALL, "num_inference_steps": 6}
    calibrate_lemica(tiny.wan_pipeline(), ["a cat"], tmp_path / "lemica.json", call=call, max_gap=3, **given)


def forecast(_, **given):
    vaccel.Forecast.load(shipped(), 17, **given)


def plan(_, **given):
    pipe = tiny.wan_pipeline()
    with vaccel.accelerate(pipe, vaccel.Schedule([0], num_steps=4)) as handle:
        handle.memory_plan(height=32, width=32, num_frames=9, num_inference_steps=4, **given)


#: of -> (how it is called, a value); the command's is in test_cli.py.
CALLS = {"calibrate_lemica": (lemica, 3), "Forecast.load": (forecast, True), "Handle.memory_plan": (plan, 1)}


@pytest.mark.parametrize("each", [r for r in RENAMED if r.of in CALLS], ids=lambda each: f"{each.of} {each.old}")
def test_an_old_name_is_taken_and_said(each, tmp_path):
    call, value = CALLS[each.of]
    with pytest.warns(DeprecationWarning, match=each.new) as caught:
        call(tmp_path, **{each.old: value})
    said = [w for w in caught if note(each.of, each.old) in " ".join(str(w.message).split())]
    assert len(said) == 1
    assert said[0].filename == __file__, "it names the line that called"
    assert each.until in str(said[0].message)


@pytest.mark.parametrize("each", RENAMED, ids=lambda each: f"{each.of} {each.old}")
def test_it_is_tried(each):
    assert each.of in CALLS or each.of == "vaccel calibrate lemica"


@pytest.mark.parametrize("each", RENAMED, ids=lambda each: f"{each.of} {each.old}")
def test_it_is_gone_in_time(each):
    assert numbers(vaccel.__version__) < numbers(each.until), f"{each.of} still takes {each.old}"


def test_new_names_say_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        forecast(tmp_path, error_growth=True)
