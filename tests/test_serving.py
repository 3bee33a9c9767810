"""What a serving host's configuration may say: checked whole, before a file is read or a pipeline touched."""

from __future__ import annotations

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vaccel
from vaccel.demo.family import shipped_folder
from vaccel.methods.auto import VISIBLE
from vaccel.serving import settings as rules
from vaccel.serving.vllm_omni import given_fields

FORECAST, LEMICA = str(shipped_folder() / "forecast.json"), str(shipped_folder() / "lemica.json")
SCHEDULE = vaccel.Schedule([0, 2], num_steps=4, reuse="residual")
read = rules.settings

#: JSON of any kind, with our field names more often than not.
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=4)
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner,
                        max_size=4), max_leaves=20)  # fmt: skip
names = st.sampled_from([f.encode_name for f in __import__("msgspec").structs.fields(rules.Fields)])
likely = st.sampled_from([FORECAST, LEMICA, "/dev/zero", "/proc/self/mem", ".", "", "\0", 17, 2, 1e9, float("nan"), 2.5,
                          True, SCHEDULE.to_json(), {"method": "schedule"}, {"method": "dual-expert"}])  # fmt: skip
configs = st.dictionaries(names | st.text(max_size=8), likely | anything, max_size=4)


def test_each_way_to_ask():
    prior = read({"budget": 6}).method
    assert isinstance(prior, vaccel.Forecast)
    assert read(None) == read({}) == rules.Settings(vaccel.Auto(psnr=VISIBLE), False)
    assert read({"psnr": 40}).method == vaccel.Auto(psnr=40)
    assert read({"speedup": 2.5, "strict": True}) == rules.Settings(vaccel.Auto(speedup=2.5), True)
    both = read({"psnr": 40, "speedup": 2, "artifact": FORECAST, "allow_mismatch": True}).method
    assert both == vaccel.Auto(psnr=40, speedup=2, artifacts=(FORECAST,), allow_mismatch=True)
    assert read({"artifact": FORECAST, "budget": 17}).method == vaccel.Forecast.load(FORECAST, 17)
    assert read({"artifact": LEMICA, "budget": 17}).method == vaccel.LeMiCa.load(LEMICA, 17)
    assert read({"method": json.loads(json.dumps(SCHEDULE.to_json()))}).method == SCHEDULE


@pytest.mark.parametrize(("config", "said"), [
    ("budget", "must be an object, got str"),
    ([1], "must be an object, got list"),
    ({"bugdet": 6}, "unknown field `bugdet`; it takes artifact and budget"),
    ({"budget": "6"}, "Expected `int | null`, got `str`"),
    ({"budget": True}, "budget"),
    ({"budget": 1}, ">= 2"),
    ({"budget": 10**9}, "<="),
    ({"budget": 10**40}, "budget|range|OverflowError"),
    ({"psnr": float("nan")}, "psnr"),
    ({"psnr": 0}, "> 0.0"),
    ({"psnr": float("inf")}, "<= 10000.0"),
    ({"speedup": 1}, "speedup must be above 1"),
    ({"psnr": 40, "budget": 6}, "choose one"),
    ({"artifact": FORECAST}, "goes with a budget"),
    ({"artifact": FORECAST, "budget": 17, "strict": "yes"}, "strict"),
    ({"artifact": "", "budget": 17}, "length >= 1"),
    ({"artifact": "a" * 5000, "budget": 17}, "length <= 4096"),
    ({"artifact": "a" * 4000, "budget": 17}, "no file here|File name too long"),
    ({"artifact": "a\0b", "budget": 17}, "is no path"),
    ({"artifact": "/dev/zero", "budget": 17}, "is no file here"),
    ({"artifact": "/", "budget": 17}, "is no file here"),
    ({"artifact": "/nowhere.json", "budget": 17}, "is no file here"),
    ({"artifact": __file__, "budget": 17}, "not a calibration artifact"),
    ({"artifact": str(shipped_folder() / "teacache.json"), "budget": 17}, "not a forecast artifact"),
    ({"allow_mismatch": True}, "there is none"),
    ({"method": SCHEDULE.to_json(), "budget": 6}, "method says everything by itself"),
    ({"method": {"method": "none"}}, "unknown method"),
    ({"method": {"method": "forecast", "x": 1}}, "has no field"),
    ({"method": {"method": "schedule", "actions": [object()]}}, "plain JSON, and holds a object"),
    ({"method": {"a": "x" * 2**21}}, "more than 1048576 bytes"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(config, said):
    with pytest.raises(ValueError, match=said) as error:
        read(config)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("vaccel's cache_config")
    assert len(str(error.value)) < 1000


def test_deep_and_circular_ones():
    deep: dict = {}
    for _ in range(5000):
        deep = {"method": deep}
    circular: dict = {}
    circular["method"] = circular
    for config in (deep, circular, {"method": circular}):
        with pytest.raises(ValueError, match="vaccel's cache_config"):
            read(config)


def test_a_file_is_measured_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        os.truncate(file.fileno(), rules.LARGEST_ARTIFACT + 1)  # which takes no room on the disk
    with pytest.raises(ValueError, match="no calibration has more than"):
        read({"artifact": str(path), "budget": 17})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no file here"):
        read({"artifact": str(tmp_path / "pipe"), "budget": 17})


@settings(max_examples=150, deadline=None)
@given(configs | anything)
def test_whatever_a_host_says_is_settings_or_one_error(config):
    said, found = "", None
    try:
        found = read(config)
    except ValueError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 1000
    assert said or (isinstance(found.method, vaccel.Method) and isinstance(found.strict, bool))


@dataclasses.dataclass
class HostConfig:
    """As vLLM-Omni's ``DiffusionCacheConfig``: fields of its own backends, and what it does not know."""

    rel_l1_thresh: float | None = None
    counts: list[int] = dataclasses.field(default_factory=lambda: [1, 2])
    _extra_params: dict = dataclasses.field(default_factory=dict)


def test_fields_of_a_host_are_told_from_its_own():
    assert given_fields(HostConfig(_extra_params={"budget": 6})) == {"budget": 6}
    assert given_fields(HostConfig()) == {}
    assert given_fields({"budget": 6}) == {"budget": 6}
    assert given_fields(None) is None
    for config in (HostConfig(rel_l1_thresh=0.2), HostConfig(counts=[1])):
        with pytest.raises(ValueError, match="is of another cache backend"):
            given_fields(config)
    with pytest.raises(ValueError, match="must be an object, got SimpleNamespace"):
        read(given_fields(SimpleNamespace(budget=6)))
