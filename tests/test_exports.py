"""Calibrations for other hosts: the mask says the path, and cache-dit computes just those steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vaccel
from vaccel.demo.family import shipped_folder
from vaccel.exports import cache_dit

FORECAST, LEMICA = shipped_folder() / "forecast.json", shipped_folder() / "lemica.json"


def path_of(config):
    return tuple(step for step, computed in enumerate(config["cache_config"]["steps_computation_mask"]) if computed)


def test_the_mask_is_the_path():
    made = cache_dit(FORECAST, 17)
    assert path_of(made) == tuple(vaccel.Forecast.load(FORECAST, 17).full_steps)
    assert made["cache_config"]["num_inference_steps"] == len(made["cache_config"]["steps_computation_mask"]) == 50
    assert made["cache_config"]["enable_taylorseer"] is True
    for stands_in in ("taylorseer", "residual"):
        assert path_of(cache_dit(LEMICA, 17, stands_in=stands_in)) == vaccel.LeMiCa.load(LEMICA, 17).full_steps


def test_reuse_has_a_path_of_its_own():
    made = cache_dit(FORECAST, 17, stands_in="residual")
    assert len(path_of(made)) == 17
    assert path_of(made) != path_of(cache_dit(FORECAST, 17))
    assert "enable_taylorseer" not in made["cache_config"]


def test_what_cannot_be_is_refused(tmp_path):
    for call, message in [
        (lambda: cache_dit(FORECAST, 17, stands_in="magic"), "stands_in must be one of"),
        (lambda: cache_dit(FORECAST, 17, first_blocks=0), "first_blocks must be"),
        (lambda: cache_dit(LEMICA, 2), "can make"),
        (lambda: cache_dit(shipped_folder() / "teacache.json", 17), "not a forecast artifact but one of teacache"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not a calibration artifact"):
        cache_dit(tmp_path / "broken.json", 17)


def test_the_command(tmp_path):
    from vaccel.cli import app

    out = tmp_path / "cache_dit.yaml"
    result = CliRunner().invoke(app, ["export", "cache-dit", str(FORECAST), "--budget", "17", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text()) == cache_dit(FORECAST, 17)
    assert "17 of 50 steps computed" in result.output
    wrong = CliRunner().invoke(app, ["export", "cache-dit", str(LEMICA), "--budget", "2", "--out", str(out)])
    assert wrong.exit_code != 0
    assert json.loads(out.read_text()) == cache_dit(FORECAST, 17), "what was there is still there"


HOST = """
import sys
import cache_dit, tiny, torch
pipe, counted = tiny.wan_pipeline(), []
pipe.transformer.blocks[-1].register_forward_hook(lambda *_: counted.append(1))
cache_dit.enable_cache(pipe, **cache_dit.load_configs(sys.argv[1]))
assert torch.isfinite(tiny.latents(pipe, steps=50)).all()
print("computed", len(counted))
"""


@pytest.mark.parametrize("stands_in", ["taylorseer", "residual"])
def test_cache_dit_computes_these_steps(stands_in, tmp_path):
    """The real thing, in a process of its own since it changes classes of diffusers."""
    file = tmp_path / "cache_dit.yaml"
    file.write_text(json.dumps(cache_dit(LEMICA, 17, stands_in=stands_in)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", HOST, str(file)], capture_output=True, text=True, check=False,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"computed {2 * 17}" in done.stdout, "the last block ran at the path's steps alone, for both branches"
