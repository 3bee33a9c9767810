"""What the command line says to type next: alone, after an error, and to the shell that completes a line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import vaccel
from vaccel.cli import app, completion, home
from vaccel.demo.family import shipped_folder
from vaccel.evaluate import parse_contender
from vaccel.evaluate.contenders import offered
from vaccel.methods.availability import NEEDS
from vaccel.planning import artifacts

PROMPT = "a red circle moves left slowly on a gray background"
COMMANDS = {"app", "export", "demo", "generate", "compare", "explain", "calibrate", "distill", "doctor"}
#: What can be typed: a command, or an option of the one that was.
TYPED = re.compile(
    r"vaccel (calibrate|compare|distill|doctor|explain|generate|--help)|pip install|-m \"\w|--\w+|Try '.* --help'"
)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def completed(*words: str) -> list[str]:
    """What bash is offered for the last of these words."""
    environment = {
        **os.environ, "_VACCEL_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }  # fmt: skip
    script = (
        "import sys; sys.argv = ['vaccel']\nfrom vaccel.cli import app\n"
        "try:\n    app(prog_name='vaccel')\n"
        "finally:\n    assert not {'torch', 'diffusers', 'numpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert "Error" not in done.stderr, done.stderr
    return done.stdout.split()


def test_alone_it_says_what_is_here_and_what_to_type():
    result = run()
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) <= 24
    assert f"vaccel {vaccel.__version__}, torch " in lines[1]
    assert "kernels" in lines[1]
    said = {line.split()[1] for line in lines if line.startswith("  vaccel ")}
    assert said >= COMMANDS - {"distill", "export"}
    assert "\x1b" not in result.output


def test_what_it_says_to_type_are_commands_with_options_that_there_are():
    import shlex

    for _, line in home.NEXT:
        _, *arguments = shlex.split(line)
        names = [a for a in arguments[:2] if re.fullmatch(r"[a-z]+", a)]
        helped = run(*(names[:2] if names[:1] == ["calibrate"] else names[:1]), "--help")
        assert helped.exit_code == 0, line
        for option in (a for a in arguments if a.startswith("-")):
            assert option in helped.output, line


def test_alone_it_does_not_import_diffusers():
    script = (
        "import sys; sys.argv = ['vaccel']\nfrom vaccel.cli import app\n"
        "try:\n    app()\nfinally:\n    assert 'diffusers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_methods_that_are_offered_are_the_public_ones():
    public = {name for name in vaccel.__all__ if isinstance(getattr(vaccel, name), type)}
    public = {name for name in public if issubclass(getattr(vaccel, name), vaccel.Method)} - {"Method"}
    assert {name for name, kind in offered().items() if kind.__module__.startswith("vaccel.")} == public
    assert set(completion.METHODS) == public
    assert set(NEEDS) == public, "what doctor says of a pipeline"
    refused = run("generate", PROMPT, "-m", "Magic(1)").output
    known = re.search(r"known: ([\w, ]+)", refused)[1]
    assert set(known.split(", ")) == set(offered())
    assert "Recording" not in refused
    with pytest.raises(ValueError, match="unknown method 'Recording'"):
        parse_contender("Recording()")


@pytest.mark.parametrize("name", completion.METHODS)
def test_every_example_of_a_method_is_one(name):
    found = parse_contender(completion.METHODS[name], shipped_folder())
    assert type(found.method) is getattr(vaccel, name)
    assert name not in completion.CALIBRATED or completion.CALIBRATED[name] in {
        "forecast",
        "lemica",
        "mixcache",
        "teacache",
    }


def test_a_name_alone_is_a_method_without_arguments():
    assert parse_contender("EasyCache").method == vaccel.EasyCache()
    for text in ("teacache(1)", "TeaCahce"):
        with pytest.raises(ValueError, match=r"did you mean TeaCache\?"):
            parse_contender(text)


def test_the_shell_completes_commands_options_and_methods():
    assert set(completed("vaccel", "")) == COMMANDS
    assert completed("vaccel", "generate", "prompt", "-m", "F") == ["Forecast"]
    assert set(completed("vaccel", "compare", "-m", "")) == {*completion.METHODS, *completion.CACHES, "steps"}
    assert set(completed("vaccel", "doctor", "--")) >= {
        "--json", "--leftovers", "--remove", "--unfinished", "--certify", "--shape", "--compiled", "--pipeline",
    }  # fmt: skip
    assert completed("vaccel", "generate", "prompt", "--dtype", "b") == ["bfloat16"]


def test_completion_can_be_installed():
    said = run("--help").output
    assert "--install-completion" in said
    assert "--show-completion" in said


BAD = {
    "unknown method": (["generate", PROMPT, "-m", "Magic(1)"], "-m"),
    "method without its arguments": (["generate", PROMPT, "-m", "Forecast"], "artifact='forecast.json'"),
    "method of no call": (["generate", PROMPT, "-m", "3 +"], "-m"),
    "unknown cache": (["generate", PROMPT, "-m", "diffusers.NoCache()"], "-m"),
    "no artifact": (["generate", PROMPT, "-m", "TeaCache(artifact='none.json')"], "vaccel calibrate teacache demo"),
    "damaged artifact": (["generate", PROMPT, "-m", "LeMiCa(artifact='DAMAGED')"], "vaccel calibrate lemica demo"),
    "another's artifact": (
        ["generate", PROMPT, "-m", "MixCache(artifact='teacache.json')"],
        "vaccel calibrate mixcache",
    ),
    "another model's artifact": (
        ["generate", PROMPT, "-m", "LeMiCa(artifact='OTHER', budget=17)"],
        "`vaccel calibrate lemica`",
    ),
    "an artifact of other steps": (
        ["generate", PROMPT, "-m", "MixCache(artifact='mixcache.json')", "--steps", "6", "--out", "clip.gif"],
        "vaccel calibrate mixcache demo --steps 6",
    ),
    "no experts": (["generate", PROMPT, "-m", "DualExpert(folder='none')"], "vaccel distill demo"),
    "no pipeline folder": (["generate", PROMPT, "--pipeline", "EMPTY"], "vaccel doctor --pipeline"),
    "no pipeline": (["generate", PROMPT, "--pipeline", "/no/such/folder"], "vaccel doctor --pipeline /no/such/folder"),
    "no format": (["generate", PROMPT, "--out", "clip.txt"], "--help"),
    "trace into the clip": (["generate", PROMPT, "--out", "clip.gif", "--trace", "clip.gif"], "--help"),
    "trace of what leaves none": (
        ["generate", PROMPT, "-m", "steps(3)", "--out", "clip.gif", "--trace", "run.json"],
        "--help",
    ),
    "trace into a folder": (["generate", PROMPT, "--out", "clip.gif", "--trace", "EMPTY"], "vaccel generate --help"),
    "no prompt": (["generate"], "--help"),
    "unknown command": (["generat"], "--help"),
    "unknown option": (["doctor", "--al"], "--help"),
    "unknown metric": (["compare", "-p", PROMPT, "--metrics", "beauty"], "vaccel doctor"),
    "compare's method": (["compare", "-p", PROMPT, "-m", "Lemica"], "-m"),
    "doctor's pipeline": (["doctor", "--pipeline", "nonsense"], "vaccel doctor --pipeline WanPipeline"),
    "doctor's folder": (["doctor", "--pipeline", "EMPTY"], "vaccel doctor --pipeline WanPipeline"),
    "doctor's shape": (["doctor", "--shape", "1x2"], "--certify"),
    "certify's shape": (["doctor", "--certify", "--shape", "none"], "vaccel doctor --certify --shape 1x16x21x60x104"),
    "a metric of nobody": (["calibrate", "forecast", "--metrics", "beauty"], "vaccel doctor"),
    "errors by nothing": (["calibrate", "lemica", "--from", "DAMAGED"], "vaccel calibrate forecast"),
    "merging nothing": (["calibrate", "merge", "none.json"], "vaccel calibrate forecast"),
    "calibration into a folder": (["calibrate", "teacache", "--out", "EMPTY"], "vaccel calibrate --help"),
    "no trace": (["explain", "none.json"], "vaccel generate PROMPT --trace RUN.json"),
    "a damaged trace": (["explain", "DAMAGED"], "vaccel generate PROMPT --trace RUN.json"),
    "a folder for a trace": (["explain", "EMPTY"], "vaccel generate PROMPT --trace RUN.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_every_error_names_what_to_type(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "DAMAGED").write_text('{"method": "lemica"')
    fitted = artifacts.read(shipped_folder() / "lemica.json", "lemica")
    artifacts.replace(tmp_path / "OTHER", {**fitted, "model": {"class": "OtherTransformer", "config": "0"}})
    arguments, command = BAD[name]
    result = run(*[re.sub("DAMAGED|OTHER", lambda found: str(tmp_path / found[0]), a) for a in arguments])
    said = " ".join(result.output.split())
    assert result.exit_code == 2, said
    assert command in said
    assert TYPED.search(said)
    assert "Traceback" not in said
    assert not list(tmp_path.glob("clip*"))


def test_doctor_names_the_package_that_brings_what_is_missing(monkeypatch):
    from vaccel.cli.environment import _gpus

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert _gpus() == "nvidia-ml-py is not installed: pip install nvidia-ml-py"


def test_a_clip_without_a_method_is_autos_and_leaves_a_trace(tmp_path):
    """Of three steps, so few that all are computed."""
    out = tmp_path / "my clip.gif"
    result = run("generate", PROMPT, "--steps", "3", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "Auto(artifact='forecast.json', psnr=48), as no --method is given" in result.output
    trace = json.loads((tmp_path / "my clip.trace.json").read_text())
    assert trace["timeline"] == "FFF"
    assert any(note.startswith("Auto:") and note in result.output for note in trace["notes"])
    assert f"vaccel explain '{tmp_path / 'my clip.trace.json'}'" in result.output
    said = run("explain", str(tmp_path / "my clip.trace.json")).output
    assert "FFF" in said
    assert "computed in full by the large model" in " ".join(said.split())
