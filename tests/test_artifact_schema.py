"""Artifacts of another shape: whatever a field holds, a reader succeeds or raises a ``ValueError`` that names it."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vaccel
from vaccel.calibrate.samples import Samples
from vaccel.experts.files import read_experts
from vaccel.integrations.diffusers.auto import Times
from vaccel.methods.auto import calibrated
from vaccel.methods.lemica import edges
from vaccel.planning import artifacts, schema
from vaccel.planning.calibration import calibration, packed
from vaccel.planning.joining import mixcache_fields, teacache_fields
from vaccel.planning.packing import added
from vaccel.planning.schema.errors import shown

STEPS, CHANNELS = 6, 2
SHIPPED = Path(vaccel.__file__).parent / "demo" / "weights"
MADE_WITH = {
    "model": {"class": "Tiny", "config": "0123"},
    "scheduler": {"class": "UniPC", "config": {"flow_shift": 3.0, "trained_betas": None, "disable_corrector": []}},
    "call": {"num_inference_steps": STEPS},
    "prompts": "hash",
}
FIT = {name: MADE_WITH[name] for name in ("model", "scheduler")}


def products(seed: int) -> str:
    v = np.random.default_rng(seed).normal(size=(1, CHANNELS, STEPS, 20))
    return packed(v @ v.swapaxes(-1, -2))


def forecast_sample(seed: int, **more) -> dict:
    levels = [round(1 - i / STEPS, 3) for i in range(STEPS + 1)]
    made = {"levels": levels, "channels": CHANNELS, "bands": 1, "elements": 40, "error_growth": {"2": 6.0, "4": 0.5}}
    return {**made, "forwards": 12, **more}


def forecast() -> dict:
    trials = [[0.1, 20.0], [0.01, 41], [0.001, 60.5]]
    samples = {f"run-{k}": forecast_sample(k, seconds=1.5, seconds_recording=1.0, trials=trials) for k in range(2)}
    times = {"full": 0.1, "skipped": 0.01, "beside": 0.2}
    made = {"num_steps": STEPS, "bands": 1, "samples": samples, "products": added([products(0), products(1)])}
    return {"schema": artifacts.SCHEMA, "method": "forecast", **MADE_WITH, **made, "times": times}


def own(data: dict) -> dict:
    """The same, nothing in it there twice."""
    return json.loads(json.dumps(data))


def lemica() -> dict:
    named = [f"{i}-{j}" for i in range(STEPS) for j in range(i + 2, min(i + 4, STEPS))]
    errors = {name: 0.01 * (1 + k) for k, name in enumerate(named)}
    samples = {k: {"errors": errors, "forwards": 9, "small_forwards": 0, "done": True} for k in ("a-0", "b-0")}
    how = {"reuse": "blocks", "max_gap": 3, "compare": "latents", "tails": "exact", "stride": 2, "min_budget": None}
    header = {"schema": artifacts.SCHEMA, "method": "lemica", **how, "num_steps": STEPS, **MADE_WITH}
    return own({**header, "samples": samples})


def mixcache() -> dict:
    impacts = {name: [0.1, 0.2, 0.3, 0.1, 0.2, 0.3] for name in ("step", "cfg", "1", "2")}
    one = {"changes": [0.5, 0.4, 0.3, 0.2, 0.1], "wide_changes": [0.9, 0.5, 0.2], "impacts": impacts}
    found = {"theta": 0.1, "d1": 0.05, "d2": 0.2, "step_impact": 0.2, "cfg_impact": 0.2, "candidates": [1, 2]}
    found["block_impacts"] = [impacts["1"], impacts["2"]]
    header = {"schema": artifacts.SCHEMA, "method": "mixcache", "candidates": [1, 2], **MADE_WITH}
    return own({**header, "samples": {"a-0": one, "b-0": one}, "fields": found})


def teacache() -> dict:
    one = {"embedding": [0.2, 0.1, 0.05, 0.04, 0.02], "output": [0.1, 0.1, 0.02, 0.03, 0.01]}
    found = {"coefficients": [1.0, -2.0, 0.5], "retention": False}
    header = {"schema": artifacts.SCHEMA, "method": "teacache", "retention": False, **MADE_WITH}
    return own({**header, "samples": {"a-0": one, "b-0": one}, "fields": found})


def experts() -> dict:
    made = {"base": "tiny", "model": MADE_WITH["model"], "boundary": 0.7, "guidance": {"scale": 4.0}, "semantic": True}
    made["trajectory"] = {
        "prediction": "v_prediction", "shift": 1.0, "alphas_cumprod": [0.9, 0.5, 0.1], "num_train_timesteps": 3
    }  # fmt: skip
    made["detail"] = {"kind": "lora", "rank": 4, "alpha": 8, "targets": ["to_q"], "fresh": ["proj_out"]}
    made["training"] = {"semantic": {"iteration": 3, "iterations": 4, "loss": "huber"}}
    return {"schema": artifacts.SCHEMA, "method": "dcm", **made}


# --- every reader of each -------------------------------------------------------------------------------------------


def use_forecast(path: Path) -> None:
    for budget, objective in ((3, "leximax"), (STEPS, "leximax"), (3, "squares"), (2, "sum")):
        vaccel.Forecast.load(path, budget=budget, objective=objective)
    known = calibration(path)
    known.psnr(0.01)
    assert math.isfinite(known.error((2, 0), 4, "channel"))
    auto = vaccel.Auto.load(path, speedup=2.0)
    auto.candidates([str(path)], STEPS)
    if "times" in known.data:
        assert Times(**known.data["times"]).speedup(1, STEPS) > 0
    hash(known.fitted)
    resumed(known.data)
    for sample in known.data["samples"].values():  # as a calibration goes on with them
        if "trials" not in sample and known.data["call"]:
            assert sample["seconds"] + sample["forwards"] >= 0


def use_lemica(path: Path) -> None:
    for objective in ("leximax", "sum"):
        hash(vaccel.LeMiCa.load(path, budget=4, objective=objective))
    list(vaccel.Auto.load(path, speedup=2.0).candidates([str(path)], STEPS))
    data = calibrated(path)
    assert len(edges(data)) >= data["num_steps"] - 1
    resumed(data)
    for sample in data["samples"].values():
        assert sample["forwards"] + sample["small_forwards"] + max(sample["errors"].values(), default=0.0) >= 0


def use_mixcache(path: Path) -> None:
    hash(vaccel.MixCache.load(path))
    data = artifacts.read(path, "mixcache")
    resumed(data)
    if data["samples"]:
        mixcache_fields(data["samples"], tuple(data["candidates"]))


def use_teacache(path: Path) -> None:
    method = vaccel.TeaCache.load(path, threshold=0.1)
    assert all(math.isfinite(c) for c in method.coefficients)
    data = artifacts.read(path, "teacache")
    if "model" in data:
        resumed(data)
        if data["samples"]:
            teacache_fields(data["samples"], False)


def use_experts(path: Path) -> None:
    folder = path.with_suffix("")
    folder.mkdir()
    for name in ("semantic.safetensors", "detail.safetensors"):
        (folder / name).touch()
    shutil.copy(path, folder / "dual_expert.json")
    saved = read_experts(folder)
    level = saved.trajectory.level([1.0, saved.boundary, 0.0])
    assert bool(level.sigma.isfinite().all())
    assert saved.adapter is None or len(saved.adapter.targets + saved.adapter.fresh) >= 0
    if described := saved.training.get("semantic", {}):
        assert described["iteration"] - described["iterations"] < math.inf


def resumed(data: dict) -> None:
    """A calibration that goes on takes the samples."""
    artifacts.fitted(data), dict(data["samples"])


KINDS = {
    "forecast": (forecast, use_forecast), "lemica": (lemica, use_lemica), "mixcache": (mixcache, use_mixcache),
    "teacache": (teacache, use_teacache), "experts": (experts, use_experts),
}  # fmt: skip
_NUMBER = itertools.count()


def written(folder: Path, data: dict) -> Path:
    path = folder / f"{next(_NUMBER)}.json"
    artifacts.replace(path, data)
    return path


def tried(folder: Path, kind: str, data: dict) -> str | None:
    """What all readers say of it: nothing, or a ``ValueError``'s text."""
    try:
        KINDS[kind][1](written(folder, data))
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


@functools.cache
def folder_of_fuzz() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def places(value, at=()):
    """The way to every field at every depth; of long lists to the first and the last."""
    inner = value.items() if isinstance(value, dict) else []
    if isinstance(value, list):
        inner = [(i, value[i]) for i in sorted({0, len(value) - 1} if value else ())]
    for key, held in inner:
        yield (*at, key)
        yield from places(held, (*at, key))


def changed(data: dict, at: tuple, value) -> dict:
    """The same with another value there; ``...`` for none."""
    data = copy.deepcopy(data)
    *way, last = at
    holder = functools.reduce(lambda held, key: held[key], way, data)
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return data


# --- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_as_it_should_be_is_read(kind, tmp_path):
    data = KINDS[kind][0]()
    assert tried(tmp_path, kind, data) is None
    path = written(tmp_path, data)
    assert artifacts.read(path, data["method"]) == json.loads(json.dumps(data)), "plain, and all of it"
    meaning = (
        "fields",
        "times",
        "error_growth",
        "errors",
        "samples",
        "impacts",
        "training",
    )  # whose names mean something
    for at in [(), *[p for p in places(data) if p[-1] not in meaning]]:
        if isinstance(functools.reduce(lambda held, key: held[key], at, data), dict):
            assert tried(tmp_path, kind, changed(data, (*at, "a later vaccel's"), [1, {"x": None}])) is None, at


@pytest.mark.parametrize(
    ("name", "method"),
    [("forecast", "forecast"), ("lemica", "lemica"), ("mixcache", "mixcache"), ("teacache", "teacache"),
     ("teacache_small", "teacache"), ("dual_expert/dual_expert", "dcm")],
)  # fmt: skip
def test_shipped_ones_are_read(name, method):
    path = SHIPPED / f"{name}.json"
    data, seal = artifacts.read_sealed(path, method)
    assert {**data, "digest": seal} == json.loads(path.read_text())


NAN = math.nan
ODD = [None, 1, -1, 0, True, "x", "", "-1", [], {}, [None], [[]], {"x": 1}, 0.5, math.nan, math.inf, 1e300, 10**400,
       10**9, ...]  # fmt: skip


@pytest.mark.filterwarnings("ignore::numpy.exceptions.RankWarning")  # of a polynomial through next to nothing
@pytest.mark.parametrize("kind", KINDS)
def test_any_field_may_hold_anything(kind, tmp_path):
    data = KINDS[kind][0]()
    told = []
    for at, value in itertools.product(places(data), ODD):
        try:
            said = tried(tmp_path, kind, changed(data, at, value))
        except Exception as error:
            pytest.fail(f"{kind} {at} = {shown(value)}: {type(error).__name__}: {error}")
        told += [(at, said)] if said is not None and value != 10**400 else []
    named = [said for at, said in told if str(at[-1]) in said or isinstance(at[-1], int)]
    assert len(named) > 0.9 * len(told), "errors name the field"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["0-2", "2", "x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.filterwarnings("ignore::numpy.exceptions.RankWarning")
@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), choices=st.data())
def test_several_at_once(kind, choices):
    data = KINDS[kind][0]()
    for _ in range(choices.draw(st.integers(1, 3))):
        at = choices.draw(st.sampled_from(list(places(data)) or [("x",)]))
        data = changed(data, at, choices.draw(JSON | st.just(...)))
    tried(Path(folder_of_fuzz().name), kind, data)


@settings(max_examples=60, deadline=None)
@given(text=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_file_may_be_given(text):
    path = Path(folder_of_fuzz().name) / f"{next(_NUMBER)}.json"
    path.write_bytes(text)
    for load in (vaccel.Forecast.load, vaccel.LeMiCa.load, vaccel.MixCache.load, vaccel.TeaCache.load):
        with pytest.raises(ValueError, match="is not a"):
            load(path)


DEEP = {
    "lists": "[" * 100_000, "objects": '{"a":' * 100_000, "closed": "[" * 900 + "]" * 900, "digits": "1" * 100_000,
    "within": '{"method": "lemica", "schema": 2, "call": ' + "[" * 200 + "]" * 200 + "}", "no": "", "null": "null",
    "surrogate": '"\\ud800"', "schema": '{"method": "lemica", "schema": [[[]]]}',
    "method": '{"method": {"a": []}, "schema": 2}', "seal": '{"method": "lemica", "schema": 2, "digest": []}',
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_garbage_is_told_from_an_artifact(name, tmp_path):
    path = tmp_path / "lemica.json"
    path.write_text(DEEP[name])
    with pytest.raises(ValueError, match=r"lemica\.json (is|was) ") as raised:
        vaccel.LeMiCa.load(path)
    assert len(str(raised.value)) < 400
    with pytest.raises(ValueError, match="is not a"):
        vaccel.LeMiCa.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        vaccel.LeMiCa.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("kind", "at", "value", "said"),
    [
        ("forecast", "samples.run-0.levels", None, "must be a list of numbers, got null"),
        ("forecast", "samples.run-1.levels[2]", "x", "must be a number, got 'x'"),
        ("forecast", "samples.run-0.levels[0]", NAN, "must be a number, at least -1e+50 and at most 1e+50, got"),
        ("forecast", "samples.run-1.levels", [1.0, 0.0], "must have 7 entries, as in every sample"),
        ("forecast", "samples.run-0.elements", 0, "must be a whole number, at least 1"),
        ("forecast", "samples.run-0.error_growth.7", 1.0, "must be named for a step from 0 to 5"),
        ("forecast", "samples.run-0.trials[1]", [1], "must be a list of 2 numbers, got a list of 1"),
        ("forecast", "samples.run-0.forwards", ..., "is missing"),
        ("forecast", "samples", {}, "must be an object, at least 1 long, got an empty object"),
        ("forecast", "model", "x", "must be an object, got 'x'"),
        ("forecast", "model.class", ..., "is missing"),
        ("forecast", "bands", 3, "must be a whole number, at least 1 and at most 2, got 3"),
        ("forecast", "products", ..., "is missing, and no sample has any"),
        ("forecast", "products", "AAAA", "must be base64 of fp64 numbers"),
        ("forecast", "products", artifacts.pack(np.ones(5)), "must hold 42 numbers, for 1 bands x 2 channels"),
        ("forecast", "products", artifacts.pack(np.full(42, np.nan)), "must hold numbers, at most 1e+50"),
        ("forecast", "products", artifacts.pack(np.arange(42.0)), "must hold inner products"),
        ("forecast", "times.half", 1.0, "is no field here: full, skipped, beside are"),
        ("lemica", "samples.a-0.errors.0-6", 0.1, "must be named for two steps, such as 0-2, from 0 to 5"),
        ("lemica", "samples.a-0.errors.3-1", 0.1, "must be named for two steps"),
        ("lemica", "samples.b-0.errors.0-2", -0.1, "must be a number, at least 0, got -0.1"),
        ("lemica", "samples.a-0.done", "yes", "must be true or false, got 'yes'"),
        ("lemica", "num_steps", 10**12, "must be a whole number, at least 1 and at most 4096"),
        ("mixcache", "samples.b-0.impacts.cfg", ..., "is missing"),
        ("mixcache", "samples.a-0.impacts.2", [0.1], None),
        ("mixcache", "fields.intervals", 3, "must be a string or a list of whole numbers, got 3"),
        ("mixcache", "fields.interval", "x", "must be a whole number or null, got 'x'"),
        ("teacache", "fields.coefficients", [], "must be a list of numbers, at least 1 long, got an empty list"),
        ("teacache", "samples.a-0.output", [0.1], None),
        ("experts", "boundary", 1.0, "must be a number, above 0 and below 1, got 1.0"),
        ("experts", "detail.kind", "lore", "must be one of 'lora', 'full', 'none', got 'lore'"),
        ("experts", "detail.targets", ..., "is missing"),
        ("experts", "trajectory.alphas_cumprod", [0.5], "must have 3 entries for v_prediction, got 1"),
        ("experts", "training.semantic.iterations", None, "must be a whole number"),
    ],
)
def test_errors_name_file_and_field(kind, at, value, said, tmp_path):
    way = [int(k) if k.isdigit() and "[" in at else k for k in at.replace("[", ".").replace("]", "").split(".")]
    data = changed(KINDS[kind][0](), tuple(way), value)
    path = written(tmp_path, data)
    where = at if said is not None else at.rsplit(".", 1)[0]
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        artifacts.read(path, data["method"])
    assert str(raised.value).startswith(f"{path}: {where} {said or 'must have'}")


def test_what_calibrations_write_on_their_way_is_read(tmp_path):
    data = forecast()
    for k, sample in enumerate(data["samples"].values()):  # before they are added up, and before the runs made to see
        sample |= {"products": products(k)}
        del sample["trials"]
    apart = {k: v for k, v in data.items() if k not in ("products", "times")}
    assert tried(tmp_path, "forecast", apart) is None
    one = {name: {k: v for k, v in s.items() if k != "products"} for name, s in apart["samples"].items()}
    one["run-0"]["products"] = products(0)
    assert tried(tmp_path, "forecast", {**apart, "samples": one, "products": products(1)}) is None
    learnt = {f"run-{k}": forecast_sample(k) for k in range(2)}  # as Auto has it
    header = {"schema": artifacts.SCHEMA, "method": "forecast", **FIT, "call": {}, "num_steps": STEPS, "bands": 1}
    assert tried(tmp_path, "forecast", {**header, "samples": learnt, "products": products(0)}) is None
    started = lemica()
    started["samples"]["a-0"] = {"errors": {}, "forwards": 0, "small_forwards": 0}
    assert tried(tmp_path, "lemica", started) is None, "what is not finished counts only where nothing else is there"
    started["samples"]["b-0"] = {"errors": {"0-2": math.inf}, "forwards": 3, "small_forwards": 0}
    for few in (started, {**started, "samples": {}}):
        assert artifacts.read(written(tmp_path, few), "lemica") == few
        with pytest.raises(ValueError, match="can make 6 to 6"):
            vaccel.LeMiCa.load(written(tmp_path, few), budget=4)
    alone = {"schema": artifacts.SCHEMA, "method": "teacache", "fields": {"coefficients": [1, 0]}}
    assert tried(tmp_path, "teacache", alone) is None
    unguided = mixcache()
    for sample in unguided["samples"].values():
        del sample["impacts"]["cfg"]
    assert tried(tmp_path, "mixcache", unguided) is None


def under_old_names(value):
    """As earlier versions named the fields."""
    old = {"error_growth": "gains", "min_budget": "hopeless"}
    if isinstance(value, dict):
        return {old.get(name, name): under_old_names(held) for name, held in value.items()}
    return [under_old_names(held) for held in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", ["forecast", "lemica"])
def test_files_with_the_old_names_are_read_under_the_new_ones(kind, tmp_path):
    data = own(KINDS[kind][0]())
    old = under_old_names(data)
    assert old != data
    assert tried(tmp_path, kind, old) is None
    path = written(tmp_path, old)
    assert artifacts.read(path, kind) == data
    assert artifacts.read_sealed(path, kind)[1] == json.loads(path.read_text())["digest"], "sealed as it was written"
    if kind == "lemica":  # a calibration goes on with it
        header = {k: v for k, v in data.items() if k not in ("samples", "prompts")}
        assert Samples(path, header, ["x"], [0]).data == data["samples"]
    for odd in ODD:  # whatever an old field holds
        where = ("samples", "run-0", "gains") if kind == "forecast" else ("samples",)
        tried(tmp_path, kind, changed(old, where, odd))


def test_a_long_run_is_solved(tmp_path):
    data = lemica() | {"num_steps": schema.MOST_STEPS}
    path = written(tmp_path, data)
    assert len(vaccel.LeMiCa.load(path, budget=schema.MOST_STEPS).full_steps) == schema.MOST_STEPS


def test_other_formats_are_checked_for_what_all_share(tmp_path):
    made = {"schema": artifacts.SCHEMA, "method": "mine"}
    assert artifacts.read(written(tmp_path, {**made, "count": 3}), "mine")["count"] == 3
    with pytest.raises(ValueError, match=r": fields must be an object, got 'x'"):
        artifacts.read(written(tmp_path, {**made, "fields": "x"}), "mine")
