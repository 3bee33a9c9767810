"""Methods as plain data: frozen, comparable, to and from JSON, strict about what they are given."""

from __future__ import annotations

import dataclasses
import json

import pytest

import vaccel
from vaccel.cache.buffers import Buffers
from vaccel.methods import RunInfo
from vaccel.planning import artifacts

POLYNOMIAL = (2.0, 1.0, 0.5)
METHODS = [
    vaccel.DirectionMagnitude(),
    vaccel.DirectionMagnitude(threshold=0.01, first=0.1, last=0.9, cfg_reuse=False, magnitude="projection"),
    vaccel.SRDiffusion(threshold=0.03, signal="latents", fix_steps=3),
    vaccel.SRDiffusion(rendering=vaccel.TeaCache(threshold=0.1, coefficients=POLYNOMIAL)),
    vaccel.TeaCache(threshold=0.2, coefficients=POLYNOMIAL, retention=True),
    vaccel.Schedule([0, 3], num_steps=6),
    vaccel.Schedule.from_timeline("FFmmFrs", reuse="residual"),
    vaccel.Schedule.from_timeline("eeee"),
    vaccel.Schedule.from_timeline("FFppFo"),
    vaccel.DualExpert("experts", steps=8, merged=True),
    vaccel.Forecast((0, 1, 4, 8), 9, order=3, damping=0.25),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.id)
def test_plain_data(method):
    again = vaccel.method_from_json(json.loads(json.dumps(method.to_json())))
    assert again == method
    assert hash(again) == hash(method)
    assert type(again) is type(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.threshold = 1


def test_ranges_of_direction_magnitude():
    """T = 50: 0..9 large, 10..46 adaptive, 47..49 small; and no rounding noise at 0.14 * 50."""
    for steps, first, last in ((50, 10, 47), (15, 3, 14), (20, 4, 19), (100, 20, 95)):
        policy = vaccel.DirectionMagnitude().start(RunInfo(steps, Buffers()))
        assert (policy.first, policy.last) == (first, last)
    assert vaccel.DirectionMagnitude(first=0.14).start(RunInfo(50, Buffers())).first == 7


def test_presets_refuse_a_model_nothing_is_published_for():
    assert vaccel.TeaCache.preset("wan2.1-t2v-1.3b", threshold=0.05).threshold == 0.05
    assert len(vaccel.TeaCache.preset("cogvideox-5b").coefficients) == 5
    assert vaccel.TeaCache.preset("wan2.1-t2v-14b-retention").retention
    for method in (vaccel.TeaCache, vaccel.DirectionMagnitude, vaccel.SRDiffusion):
        with pytest.raises(ValueError, match="vaccel calibrate"):
            method.preset("my-model")


def test_schedules():
    assert vaccel.Schedule([0, 2], num_steps=4).timeline == "FrFr"
    assert vaccel.Schedule.from_timeline("FFrr").timeline == "FFrr"
    assert not vaccel.Schedule([0], num_steps=4).needs_small
    assert vaccel.Schedule.from_timeline("Fm").needs_small
    bad = {
        "outside the run of 4 steps": lambda: vaccel.Schedule([0, 4], num_steps=4),
        "reuses what no earlier step has computed": lambda: vaccel.Schedule([1], num_steps=4),
        "unknown action 'x'": lambda: vaccel.Schedule.from_timeline("Fx"),
        "at least one step": lambda: vaccel.Schedule.from_timeline(""),
        "must be one of 'blocks', 'residual', 'output'": lambda: vaccel.Schedule([0], num_steps=4, reuse="head"),
    }
    for message, make in bad.items():
        with pytest.raises(ValueError, match=message):
            make()


def test_bad_values_are_refused():
    bad = [
        lambda: vaccel.DirectionMagnitude(threshold=-1),
        lambda: vaccel.DirectionMagnitude(threshold=float("nan")),
        lambda: vaccel.DirectionMagnitude(first=0.9, last=0.1),
        lambda: vaccel.DirectionMagnitude(magnitude="big"),
        lambda: vaccel.SRDiffusion(signal="noise"),
        lambda: vaccel.SRDiffusion(rendering="teacache"),
        lambda: vaccel.TeaCache(threshold=0.1),
        lambda: vaccel.TeaCache(threshold=0.1, coefficients=POLYNOMIAL, warmup=0),
        lambda: vaccel.DualExpert("experts", steps=1),
        lambda: vaccel.method_from_json({"method": "magic"}),
        lambda: vaccel.method_from_json({"method": "teacache", "threshold": 0.1, "color": 1}),
    ]
    for make in bad:
        with pytest.raises(ValueError, match=r"\w{4,}"):
            make()


def test_artifacts_are_loaded_by_method(tmp_path):
    path = tmp_path / "teacache.json"
    fields = {"coefficients": [1.0, 0.0], "retention": True}
    artifacts.write(path, {"schema": artifacts.SCHEMA, "method": "teacache", "fields": fields})
    method = vaccel.TeaCache.load(path, threshold=0.3)
    assert (method.coefficients, method.retention, method.threshold) == ((1.0, 0.0), True, 0.3)
    with pytest.raises(ValueError, match="not a srdiffusion artifact but one of teacache"):
        vaccel.SRDiffusion.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not a calibration artifact"):
        vaccel.TeaCache.load(path)
    with pytest.raises(FileNotFoundError):
        vaccel.TeaCache.load(tmp_path / "none.json")
