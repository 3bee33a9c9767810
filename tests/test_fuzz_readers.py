"""Every reader against random and mutated input: a ``ValueError`` that says what is wrong, or a thing of use.

    pytest tests/test_fuzz_readers.py                                  # some hundred inputs, always the same
    VACCEL_FUZZ=100000 pytest tests/test_fuzz_readers.py -s            # so many, spread over the readers, other ones

Every input has a bound on the memory that Python allocates for it (``MOST_BYTES``); with ``VACCEL_FUZZ`` also on time.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_artifact_schema import experts, forecast, lemica, mixcache, teacache

import vaccel
from vaccel.methods.auto import calibrated
from vaccel.methods.base import _METHODS
from vaccel.planning import artifacts, schema

EXAMPLES = int(os.environ.get("VACCEL_FUZZ", 0))
#: What one input may make Python allocate at most, and how long it may take where time is looked at.
MOST_BYTES, MOST_SECONDS = 64 * 2**20, 5.0
#: Words of Python's own about a value, which tell nobody which field is wrong.
UNCLEAR = ("max() arg", "min() arg", "broadcast", "cannot reshape", "to unpack", "invalid literal", "math domain",
           "Singular", "NoneType", "unhashable", "object is not", "positional argument")  # fmt: skip

NUMBERS = st.sampled_from([0, -1, 1, 2, 10**7, 10**13, 2**63, 10**400, 1e308, -1e308, 1e-320, 0.5])
ODD = st.sampled_from(
    [float("nan"), float("inf"), float("-inf"), None, True, "", "x", "../../x", "0", "AAAA", "\0", "\ud800", [], {}]
)
LEAVES = NUMBERS | ODD | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)

ARTIFACTS: dict[str, tuple[Callable[[], dict], Callable[[Path], Any]]] = {
    "forecast": (forecast, lambda path: vaccel.Forecast.load(path, 2)),
    "lemica": (lemica, lambda path: vaccel.LeMiCa.load(path, 3)),
    "mixcache": (mixcache, vaccel.MixCache.load),
    "teacache": (teacache, lambda path: vaccel.TeaCache.load(path, threshold=0.1)),
    "dcm": (experts, lambda path: artifacts.read(path, "dcm")),
    "auto": (forecast, lambda path: vaccel.Auto(speedup=2, artifacts=(str(path),)).candidates([str(path)], 4)),
    "auto lemica": (lemica, lambda path: vaccel.Auto(speedup=2, artifacts=(str(path),)).candidates([str(path)], 4)),
    "either": (lemica, calibrated),
}
METHODS: list[vaccel.Method] = [
    vaccel.TeaCache.preset("wan2.1-t2v-14b"), vaccel.LeMiCa.preset("wan2.1-i2v", budget=14), vaccel.MixCache(),
    vaccel.Forecast((0, 2, 5), 6), vaccel.SRDiffusion(rendering=vaccel.TeaCache(coefficients=(1.0, 2.0))),
    vaccel.Auto(speedup=2), vaccel.DirectionMagnitude(), vaccel.EasyCache(), vaccel.DualExpert("x"),
    vaccel.Schedule.from_timeline("FFrpFgob"),
]  # fmt: skip


def share(parts: int, few: int) -> Any:
    """The settings of a test that stands for one of so many kinds of input."""
    given_up = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(
        max_examples=EXAMPLES // parts if EXAMPLES else few, deadline=None, database=None, derandomize=not EXAMPLES,
        suppress_health_check=given_up,
    )  # fmt: skip


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="fuzz-")


def tried(reader: Callable[[], Any]) -> Any:
    """What a reader makes of an input; None where it refuses it, in words."""
    began = time.perf_counter()
    tracemalloc.start()
    try:
        return reader()
    except ValueError as error:
        said = str(error)
        assert said
        assert len(said) < 2000
        assert not any(words in said for words in UNCLEAR), said
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_BYTES
        assert not EXAMPLES or time.perf_counter() - began < MOST_SECONDS


def places(value: Any, at: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [at, *(place for name, held in items for place in places(held, (*at, name)))]


def mutated(data: Any, draw: Callable[[Any], Any]) -> Any:
    """The data with one to three places changed, removed, doubled or put elsewhere."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(places(data)))
        if not at:
            continue
        holder = functools.reduce(lambda inner, name: inner[name], at[:-1], data)
        how = draw(st.sampled_from(["value", "value", "json", "remove", "wrap", "other"]))
        if how == "remove":
            del holder[at[-1]]
        elif how == "wrap":
            holder[at[-1]] = [holder[at[-1]]]
        elif how == "other":
            other = draw(st.sampled_from(places(data)))
            holder[at[-1]] = copy.deepcopy(functools.reduce(lambda inner, name: inner[name], other, data))
        else:
            holder[at[-1]] = draw(LEAVES if how == "value" else JSON)
    return data


def sealed(data: dict[str, Any]) -> bytes:
    return json.dumps({**data, "digest": artifacts._digest(data)}).encode()


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_resealed_artifacts(kind):
    make, read = ARTIFACTS[kind]
    path = Path(folder().name) / "artifact.json"

    @share(4 * len(ARTIFACTS), 60)
    @given(st.data())
    def run(choices):
        data = mutated({k: v for k, v in make().items() if k != "digest"}, choices.draw)
        path.write_bytes(sealed({**make(), **data} if choices.draw(st.booleans()) else data))
        tried(lambda: read(path))

    run()


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_damaged_bytes(kind):
    make, read = ARTIFACTS[kind]
    path, whole = Path(folder().name) / "bytes.json", sealed(make())

    @share(4 * len(ARTIFACTS), 40)
    @given(st.data())
    def run(choices):
        cut = slice(*sorted(choices.draw(st.tuples(*[st.integers(0, len(whole))] * 2))))
        path.write_bytes(whole[: cut.start] + choices.draw(st.binary(max_size=20)) + whole[cut.stop :])
        tried(lambda: read(path))

    run()


@pytest.mark.parametrize("kind", ["forecast", "lemica", "mixcache", "teacache", "dcm", "anything"])
def test_schema(kind):
    start = {"anything": {}} | {name: make() for name, (make, _) in ARTIFACTS.items()}

    @share(24, 60)
    @given(st.data())
    def run(choices):
        data = (
            mutated(start[kind], choices.draw)
            if choices.draw(st.booleans())
            else choices.draw(st.dictionaries(st.text(max_size=8), JSON, max_size=5))
        )
        tried(lambda: schema.check(schema.translate(data, kind), kind))

    run()


@share(8, 300)
@given(st.data())
def test_any_json_for_a_method(choices):
    plain = choices.draw(st.sampled_from(METHODS)).to_json()
    how = choices.draw(st.sampled_from(["mutated", "mutated", "named", "any"]))
    if how == "mutated":
        data = mutated(json.loads(json.dumps(plain)), choices.draw)
    elif how == "named":
        fields = st.sampled_from(sorted(plain)) | st.text(max_size=8)
        data = {
            **choices.draw(st.dictionaries(fields, JSON, max_size=4)),
            "method": choices.draw(st.sampled_from(sorted(_METHODS))),
        }
    else:
        data = choices.draw(JSON)
    method = tried(lambda: vaccel.method_from_json(data))
    if method is not None:
        hash(method)
        assert vaccel.method_from_json(json.loads(json.dumps(method.to_json()))) == method


@share(8, 100)
@given(text=st.text(alphabet="FsmrogbpexX0\0é", max_size=12), steps=LEAVES | st.lists(LEAVES, max_size=4), count=LEAVES)
def test_counts_and_timelines(text, steps, count):
    tried(lambda: vaccel.Schedule.from_timeline(text))
    listed = steps if isinstance(steps, (list, str)) else [steps]
    for make in (
        lambda: vaccel.Schedule(listed, num_steps=count), lambda: vaccel.LeMiCa(listed, count),
        lambda: vaccel.Forecast(listed, count),
    ):  # fmt: skip
        tried(make)


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_what_is_no_file(kind, tmp_path):
    _, read = ARTIFACTS[kind]
    circle, pipe = tmp_path / "circle.json", tmp_path / "pipe"
    circle.symlink_to(circle)
    os.mkfifo(pipe)
    made = [tmp_path, circle, circle / "inner"] if kind == "dcm" else [tmp_path, circle, circle / "inner", pipe]
    for path in made:
        with pytest.raises((ValueError, OSError) if kind == "dcm" else ValueError, match=r"\w"):
            read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.json")
    nested = tmp_path / "nested.json"
    for text in ("[" * 200_000, '{"a":' * 200_000, '{"method":' + "[" * 5000 + "]" * 5000 + "}"):
        nested.write_text(text)
        assert tried(lambda: read(nested)) is None
