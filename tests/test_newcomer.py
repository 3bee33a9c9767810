"""A newcomer's walk: the commands that stand in README.md and docs/, on the shipped family."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vaccel.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: What stands for something of the reader's.
PLACES = {"FOLDER": "demo", "PIPELINE": "demo", "SMALL": "demo"}


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line ``vaccel ...`` in a code block, and of every `vaccel ...` in the text."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M))
        lines = re.findall(r"^    (vaccel [a-z].*)$", text, re.M) + re.findall(r"^(vaccel [a-z].*)$", blocks, re.M)
        lines += re.findall(r"`(vaccel [a-z][^`\n]*)`", text)
        found += [(str(page.relative_to(ROOT)), line.partition("  #")[0].strip()) for line in lines]
    return sorted(set(found))


COMMANDS = commands()


def test_there_are_some():
    assert {command.split()[1] for _, command in COMMANDS} >= {"doctor", "generate", "calibrate", "explain", "compare"}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_its_options_exist(page, command):
    group, words = typer.main.get_command(app), shlex.split(command.replace("...", ""))[1:]
    for alternative in words[0].split("|"):  # "generate | compare"
        command = group
        rest = [alternative, *words[1:]]
        while rest and hasattr(command, "commands"):
            if rest[0].isupper():  # PIPELINE: the group's own argument
                break
            name = rest.pop(0)
            assert name in command.commands, f"{page}: there is no `vaccel {name}`"
            command = command.commands[name]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            if word.startswith("-") and not hasattr(command, "commands"):
                assert word.partition("=")[0] in known, f"{page}: no option {word}"


def make_targets() -> set[str]:
    found = {name for page in PAGES for name in re.findall(r"`?\bmake ([a-z][a-z-]*)`?", page.read_text())}
    prose = {"it", "them", "sure", "a", "the", "of", "up", "their", "weights"}
    return found - prose


@pytest.mark.parametrize("target", sorted(make_targets()))
def test_make_has_what_is_named(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"make {target} stands on a page"


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def test_the_walk(tmp_path, monkeypatch):
    """Look, make, understand, ask about a pipeline: with fewer steps, so that it is soon over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "vaccel demo" in run()
    run("demo", "--out", "out/demo", "--steps", "9", "--count", "1")
    assert Path("out/demo/report.html").stat().st_size > 10_000
    said = run("generate", "a red circle moves left slowly on a gray background", "--out", "clip.gif", "--steps", "12")
    assert "vaccel explain clip.trace.json" in said
    assert Path("clip.gif").stat().st_size > 1000
    assert "action" in run("explain", "clip.trace.json", "--svg", "run.svg")
    assert Path("run.svg").read_text().lstrip().startswith("<svg")
    assert "WanTransformer3DModel" in run("doctor", "--pipeline", "WanPipeline")


def test_the_module_is_the_command():
    said = subprocess.run([sys.executable, "-m", "vaccel", "--version"], capture_output=True, text=True, check=True)
    assert re.match(r"vaccel \d+\.\d+\.\d+", said.stdout)
