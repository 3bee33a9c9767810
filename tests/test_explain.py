"""A trace as a file, in words and as a drawing."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import vaccel
from vaccel import actions
from vaccel.actions import ACTIONS
from vaccel.cli import app, explain
from vaccel.cli.console import console
from vaccel.engine import trace as traces
from vaccel.engine.trace import StepRecord, Trace
from vaccel.explain import explanation

ARTIFACT = "some/where/forecast.json"


def made(letters: str = "FFFpFprobmsgeF", method: dict | None = None, **changes) -> Trace:
    """A finished run with these letters."""
    kinds = {"p": actions.Forecast(actions.Weights.plain(1.5, -0.5)), "b": actions.Resume(2)}
    steps = [
        StepRecord(i, kinds.get(x, ACTIONS[x]()), {}, large=2 * (x == "F"), seconds=0.5) for i, x in enumerate(letters)
    ]
    method = vaccel.EasyCache(threshold=0.05).to_json() if method is None else method
    return Trace(method, len(letters), **{"steps": steps, "finished": True, **changes})


def forecast() -> Trace:
    method = {"method": "forecast", "num_steps": 6, "guard": 2.0, "artifact": ARTIFACT, "budget": 4}
    found = made("FFFpFF", method, predicted={"error": 0.0123, "psnr": 51.25, "psnr_low": 48.125})
    found.steps[2].metrics = {"forecast_error": 0.9, "measured": 0.09, "calibrated": 0.1, "judged": 1}
    found.steps[3].metrics = {"forecast_error": 2.5, "measured": 0.3, "calibrated": 0.12, "judged": 2}
    found.notes += ["guard: forecast errors too large, computed 1 further steps", "as [bold]it[/bold] is\x1b[31m"]
    return found


def shown(trace: Trace, tmp_path, *options: str, width: int = 80) -> str:
    trace.save(tmp_path / "run.json")
    before = console._width  # fixed where the environment had COLUMNS when it was made
    console.width = width
    try:
        result = CliRunner().invoke(app, ["explain", str(tmp_path / "run.json"), *options])
    finally:
        console._width = before
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("letters", ["FFFpFprobmsgeF", "F"])
def test_a_trace_is_what_it_was_when_it_is_read(letters, tmp_path):
    before = made(letters)
    before.steps[0].metrics = {"error": [0.5, math.inf], "decided_by": 1, "none": None}
    before.steps[-1].reason = "computed in full: no output cached for this model yet"
    before.notes.append("a note")
    before.predict(error=0.25)
    before.save(tmp_path / "run.json")
    after = Trace.load(tmp_path / "run.json")
    assert after.to_json() == before.to_json()
    assert [s.action for s in after.steps] == [s.action for s in before.steps]
    assert after.steps[0].metrics == before.steps[0].metrics
    assert "delivered" not in after.to_json()


def test_what_is_no_number_is_spelled_out():
    trace = made("FF")
    trace.steps[1].metrics = {"error": [math.nan, -math.inf]}
    assert "NaN" not in trace.dumps()
    nan, low = Trace.from_json(json.loads(trace.dumps())).steps[1].metrics["error"]
    assert math.isnan(nan)
    assert low == -math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 1"),
        ({"schema": True}, "schema 1"),
        ({"steps": None}, "steps must be a list"),
        ({"num_steps": 10**30}, "num_steps must be"),
        ({"timeline": "FFFF"}, "timeline and calls"),
        ({"calls": {"large": 0, "small": 0}}, "timeline and calls"),
        ({"surprise": 1}, "surprise is no field"),
        ({"predicted": {"error": "__import__('os')"}}, "predicted.error"),
        ({"notes": [3]}, "notes"),
        ({"method": []}, "method must be an object"),
    ],
)
def test_what_a_file_says_is_checked(change, message, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**made("FFp").to_json(), **change}))
    with pytest.raises(ValueError, match=re.escape(message)):
        Trace.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "X"}, "unknown action"),
        ({"index": 0}, "steps[1].index"),
        ({"index": 3}, "steps[1].index"),
        ({"metrics": {"error": {}}}, "metrics.error"),
        ({"metrics": {"error": 10**400}}, "metrics.error"),
        ({"seconds": -1.0}, "seconds"),
        ({"large": 0.5}, "large"),
        ({"threshold": 1}, "steps[1]"),
        ({"weights": [[["x"]]]}, "steps[1]"),
    ],
)
def test_what_a_step_says_is_checked(change, message):
    data = json.loads(made("FFp").dumps())
    data["steps"][1] |= change
    with pytest.raises(ValueError, match=re.escape(message)):
        Trace.from_json(data)


def places(data, at=()):
    """The way to every value of a JSON."""
    yield at
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for name, value in inner:
        yield from places(value, (*at, name))


WHOLE = json.loads(forecast().dumps())
ODD = [
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    2.5,
    "",
    "nan",
    "F",
    "\ud800",
    "$^",
    "\x1b[2J",
    [],
    [[]],
    {},
    {"": 1},
    {"method": "forecast"},
]


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(st.sampled_from(list(places(WHOLE))[1:]), st.sampled_from(ODD), st.booleans())
def test_whatever_a_file_says_is_refused_in_words_or_shown(place, value, removed):
    data = json.loads(json.dumps(WHOLE))
    *way, last = place
    holder = data
    for name in way:
        holder = holder[name]
    if removed:
        del holder[last]
    else:
        holder[last] = value
    try:
        trace = Trace.from_json(data)
    except ValueError:
        return
    trace.to_json()
    with explain.console.capture() as said:
        explain.show(explanation(trace))
    assert "\x1b" not in said.get()


def test_files_that_are_no_traces_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    for text in ("", "{", "[" * 100_000, "null", "NaN", '"\\ud800"', "{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"run\.json"):
            Trace.load(path)
    with pytest.raises(ValueError, match="a folder"):
        Trace.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "none.json")
    made().save(path)
    monkeypatch.setattr(traces, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100 are read"):
        Trace.load(path)


def test_every_action_and_every_recorded_value_has_words():
    assert all(kind.about for kind in ACTIONS.values())
    for kind in vaccel.methods.base._METHODS.values():
        for about, field in kind.records.values():
            assert about
            assert not field or field in kind.__dataclass_fields__


def test_the_timeline_is_explained(tmp_path):
    said = shown(made(), tmp_path)
    assert "FFFpFprobmsgeF" in said
    for letter in set("FFFpFprobmsgeF"):
        assert ACTIONS[letter].about in " ".join(said.split())
    assert "5 steps, 2.50 s, 10 forwards of the large model" in " ".join(said.split())


def test_what_was_predicted_and_what_was_measured_are_beside_each_other(tmp_path):
    said = " ".join(shown(forecast(), tmp_path).split())
    assert "Forecast(num_steps=6, guard=2, artifact='forecast.json', budget=4)" in said
    assert "error of the latents 0.0123 (root mean square), PSNR 51.2 dB, 19 runs in 20 above 48.1 dB" in said
    assert "at 2 computed steps" in said
    assert "2.5 times at worst, at step 2" in said
    assert "guard 2, above it at 3" in said
    assert "out of the calibration's ordinary: `vaccel calibrate forecast PIPELINE -p PROMPT`" in said
    assert "as [bold]it[/bold] is\\x1b[31m" in said


@pytest.mark.parametrize("width", [40, 80, 120])
def test_lines_fit_the_width_and_hold_no_colours(width, tmp_path):
    trace = made("F" * 10 + "pF" * 60)
    for step in trace.steps:
        step.metrics = {"error": [step.index / 1000]}
    trace.notes.append("word " * 60)
    said = shown(trace, tmp_path, width=width)
    assert "\x1b" not in said
    assert "a larger threshold than 0.05" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= width
    drawn = "".join(line.split()[1] for line in said.splitlines() if line.startswith("action "))
    assert drawn == trace.timeline()
    assert not any(line != line.rstrip() for line in said.splitlines() if not line.startswith(("error", "step")))


def test_bars_are_plain_where_the_output_has_no_blocks(tmp_path):
    forecast().save(tmp_path / "run.json")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "vaccel", "explain", str(tmp_path / "run.json")], capture_output=True, env=environment,
        check=True,
    )  # fmt: skip
    assert b"forecast_error     38" in done.stdout


def test_bars_are_as_high_as_their_values():
    watched = explanation(forecast()).watched[0]
    assert explain._bars(watched, "12345678") == "  38  "
    assert watched.above == [3]
    odd = made("FFF")
    for step, value in zip(odd.steps, (0.0, math.nan, 0.2), strict=True):
        step.metrics = {"error": [value, 0.0]}
    (one,) = explanation(odd).watched
    assert explain._bars(one, "12345678") == "1?8"
    assert one.above == [1, 2]


@pytest.mark.parametrize(
    ("letters", "method", "changes", "sentence"),
    [
        ("F" * 8, {"method": "forecast", "num_steps": 8}, {}, "8 steps or less are computed in full"),
        ("F" * 20, {"method": "forecast", "num_steps": 20}, {}, "vaccel calibrate forecast PIPELINE --steps 20"),
        ("FFF", {"method": "recording", "keep": "device"}, {}, "the next run of this pipeline is accelerated"),
        ("FFp", None, {"finished": False}, "the run stopped after 3 of 3 steps"),
        ("FFr", None, {}, "nothing predicted how far"),
        ("", {}, {}, "vaccel doctor --pipeline"),
        ("FFr", {"method": "of another version", "x": 1}, {}, "nothing predicted"),
    ],
)
def test_there_is_something_to_try_next(letters, method, changes, sentence, tmp_path):
    assert sentence in " ".join(shown(made(letters, method, **changes), tmp_path).split())


def test_a_threshold_that_was_never_reached_is_said_with_one_that_would_be(tmp_path):
    trace = made("FFFF")
    for step, error in zip(trace.steps[1:], (0.4, 0.31, 0.5), strict=True):
        step.metrics = {"error": [error]}
    said = " ".join(shown(trace, tmp_path).split())
    assert "'error' was never below threshold=0.05: the smallest was 0.31, so try threshold=0.35" in said


def test_the_drawing_is_an_svg_of_its_own(tmp_path):
    from xml.etree import ElementTree

    trace = forecast()
    trace.method["artifact"] = "$x^2$ <b>.json"
    shown(trace, tmp_path, "--svg", str(tmp_path / "run.svg"))
    root = ElementTree.parse(tmp_path / "run.svg").getroot()
    assert root.tag.endswith("svg")
    shown(Trace({}, 0), tmp_path, "--svg", str(tmp_path / "none.svg"))


def test_without_matplotlib_it_is_said_what_to_type(tmp_path):
    forecast().save(tmp_path / "run.json")
    script = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv = ['vaccel', 'explain', *sys.argv[1:]]\n"
        "from vaccel.__main__ import main; main()"
    )
    arguments = [str(tmp_path / "run.json"), "--svg", str(tmp_path / "run.svg")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'vaccel[report]'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run.svg").exists()
