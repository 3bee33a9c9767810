"""The command line, on the shipped family with few steps."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from vaccel.cli import app

PROMPT = "a red circle moves left slowly on a gray background"


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_help_helps():
    for arguments in (
        [],
        ["generate"],
        ["compare"],
        ["calibrate", "teacache"],
        ["calibrate", "lemica"],
        ["calibrate", "mixcache"],
        ["doctor"],
    ):
        result = run(*arguments, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.output


def test_help_does_not_import_torch():
    script = "import sys; from vaccel.cli import app; print(*{'torch', 'numpy', 'diffusers'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "\n"


def test_the_deprecated_option_still_works(tmp_path):
    out = tmp_path / "lemica.json"
    common = ["calibrate", "lemica", "-p", PROMPT, "--steps", "6", "--max-gap", "3", "--out", str(out)]
    old = run(*common, "--hopeless", "4")
    assert old.exit_code == 0, old.output
    assert "--hopeless is deprecated: it is called --min-budget" in " ".join(old.output.split())
    assert json.loads(out.read_text())["min_budget"] == 4
    new = run(*common, "--min-budget", "4")
    assert new.exit_code == 0, new.output
    assert "--hopeless" not in new.output
    assert "hopeless" not in run("calibrate", "lemica", "--help").output


def test_doctor():
    found = json.loads(run("doctor", "--json").output)
    assert found["packages"]["torch"].startswith("2.")
    assert isinstance(found["native"]["cpu_kernels"], bool)
    assert set(found["attention"]) >= {"sdpa", "sageattention"}
    assert "torch" in run("doctor").output


def test_generate_prints_the_timeline(tmp_path):
    out = tmp_path / "clip.gif"
    result = run("generate", PROMPT, "-m", "DirectionMagnitude(0.01)", "--steps", "10", "--out", str(out))
    assert result.exit_code == 0
    assert "FF" in result.output
    assert "large" in result.output
    assert out.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", PROMPT, "-m", "Magic(1)"], "unknown method"),
        (["generate", PROMPT, "--out", "clip.txt"], ".mp4, .gif"),
        (["generate", PROMPT, "--pipeline", "/no/such/folder"], "error:"),
        (["generate", PROMPT, "--dtype", "float7"], "float7"),
        (["generate", PROMPT, "--call", "height"], "name=value"),
        (["generate", PROMPT, "-m", "DirectionMagnitude(0.01)", "--steps", "1"], "too few"),
    ],
)
def test_bad_input_is_a_clear_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_compare_writes_page_and_json(tmp_path):
    result = run(
        "compare", "-p", PROMPT, "-m", "DirectionMagnitude(0.01)", "-m", "steps(5)", "--steps", "10",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert result.exit_code == 0
    data = json.loads((tmp_path / "report.json").read_text())
    assert [e["contender"] for e in data["summary"]] == ["DirectionMagnitude(0.01)", "steps(5)"]
    assert "caption" in data["summary"][0]["checks"]
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_calibrations_of_what_caching_harms_and_their_report(tmp_path):
    lemica, mixcache = tmp_path / "lemica.json", tmp_path / "mixcache.json"
    common = ["-p", PROMPT, "--steps", "6"]
    made = run("calibrate", "lemica", *common, "--max-gap", "3", "--batch", "2", "--out", str(lemica))
    assert made.exit_code == 0, made.output
    assert "1 samples, 7 edges each" in " ".join(made.output.split())
    made = run("calibrate", "mixcache", *common, "--candidate", "3", "--out", str(mixcache))
    assert made.exit_code == 0, made.output
    assert "blocks [3]" in " ".join(made.output.split())
    compared = run(
        "compare", *common, "-m", f"LeMiCa(artifact='{lemica}', budget=4)", "-m", f"MixCache(artifact='{mixcache}')",
        "--out", str(tmp_path / "report"), "--no-observe",
    )  # fmt: skip
    assert compared.exit_code == 0, compared.output
    page = (tmp_path / "report" / "report.html").read_text()
    assert "error graph" in page
    assert run("calibrate", "lemica", *common, "--tails", "long").exit_code == 2
    refused = run("compare", *common, "-m", f"LeMiCa(artifact='{lemica}', budget=2)", "--out", str(tmp_path / "none"))
    assert refused.exit_code == 2
    assert "can make 3 to 6" in " ".join(refused.output.split())


def test_calibration_goes_on_where_it_stopped(tmp_path):
    other = "a blue square moves up quickly on a dark background"
    whole, part = tmp_path / "whole.json", tmp_path / "part.json"
    assert run("calibrate", "teacache", "-p", PROMPT, "-p", other, "--steps", "8", "--out", str(whole)).exit_code == 0
    assert run("calibrate", "teacache", "-p", PROMPT, "--steps", "8", "--out", str(part)).exit_code == 0
    before = json.loads(part.read_text())["samples"]
    assert run("calibrate", "teacache", "-p", PROMPT, "-p", other, "--steps", "8", "--out", str(part)).exit_code == 0
    after = json.loads(part.read_text())
    assert after == json.loads(whole.read_text())
    assert before.items() <= after["samples"].items()
    refused = run("calibrate", "teacache", "-p", PROMPT, "--steps", "9", "--out", str(part))
    assert refused.exit_code == 2
    assert "another call" in refused.output
    part.write_text(whole.read_text()[:100])
    assert run("calibrate", "teacache", "-p", PROMPT, "--steps", "8", "--out", str(part)).exit_code == 2
