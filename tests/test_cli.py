"""The command line, on the shipped family with few steps."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import vaccel
from vaccel.cli import app
from vaccel.deprecated import note

PROMPT = "a red circle moves left slowly on a gray background"


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_help_helps():
    for arguments in (
        [],
        ["demo"],
        ["app"],
        ["generate"],
        ["compare"],
        ["explain"],
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
    assert note("vaccel calibrate lemica", "--hopeless") in " ".join(old.output.split())
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


OUTSIDE = "none: seen from outside"
FLUX = ["transformer_blocks", "single_transformer_blocks"]


@pytest.mark.parametrize(
    ("source", "denoisers", "blocks", "guidance"),
    [
        ("LTXPipeline", {"transformer": "ltx"}, FLUX[:1], "one call for both branches"),
        ("FluxPipeline", {"transformer": "flux"}, FLUX, "a call for each"),
        ("StableDiffusionXLPipeline", {"unet": OUTSIDE}, [], "seen at the first call"),
        ("WanModularPipeline", {"transformer": "wan"}, ["blocks"], "a guider"),
        ("StableCascadeCombinedPipeline", {"decoder": OUTSIDE, "prior_prior": OUTSIDE}, [], "seen"),
    ],
)
def test_doctor_of_a_pipeline(source, denoisers, blocks, guidance):
    found = json.loads(run("doctor", "--pipeline", source, "--json").output)
    assert {one["attribute"]: one["family"] for one in found["denoisers"]} == denoisers
    assert [one["list"] for one in found["denoisers"][0]["blocks"]] == blocks
    assert found["guidance"].startswith(guidance)
    assert found["methods"]["Forecast"] == "works"
    assert found["methods"]["MixCache"].startswith("works" if blocks else "output level only")
    assert found["steps"][-1] == "the value of the timestep"
    said = " ".join(run("doctor", "--pipeline", source).output.split())
    assert source in said
    assert all(attribute in said for attribute in denoisers)


def test_doctor_of_a_folder(tmp_path):
    from vaccel.demo.family import shipped_folder

    found = json.loads(run("doctor", "--pipeline", str(shipped_folder() / "pipeline"), "--json").output)
    assert found["denoisers"][0]["blocks"] == [{"list": "blocks", "blocks": 8}]
    for source, said in (("nonsense", "neither a folder nor"), (str(tmp_path), "no model_index.json")):
        result = run("doctor", "--pipeline", source)
        assert result.exit_code == 2
        assert said in " ".join(result.output.split())


def test_what_is_said_to_work_from_outside_does():
    """The table beside what the methods themselves say."""
    from vaccel.methods.availability import available

    settings = {
        "Auto": vaccel.Auto(speedup=2.0, learn=1),
        "Forecast": vaccel.Forecast((0, 1), 4),
        "EasyCache": vaccel.EasyCache(),
        "Schedule": vaccel.Schedule([0], num_steps=4, reuse="residual"),
        "LeMiCa": vaccel.LeMiCa((0, 3), 4, reuse="output"),
        "MixCache": vaccel.MixCache(levels=("step", "cfg")),
        "DirectionMagnitude": vaccel.DirectionMagnitude(),
        "SRDiffusion": vaccel.SRDiffusion(),
        "TeaCache": vaccel.TeaCache(coefficients=(1.0,)),
    }
    for name, said in available(blocks=False, embedding=False).items():
        if name not in settings:
            continue
        if said.startswith("not"):
            with pytest.raises(ValueError, match="seen from outside"):
                settings[name].outside()
        else:
            assert settings[name].outside() == settings[name]


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
