"""The variables for SGLang make cache-dit's mask the path again, and its pipelines compute just those steps.

SGLang cannot be installed without a GPU; what its server makes of the variables is written here from its public source
(``DenoisingStage._maybe_enable_cache_dit``, ``enable_cache_on_transformer``, ``refresh_context_on_transformer``).  The
cache-dit beneath it is the real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import vaccel
from vaccel.demo.family import shipped_folder
from vaccel.exports import sglang
from vaccel.exports.sglang import bins

FORECAST, LEMICA = shipped_folder() / "forecast.json", shipped_folder() / "lemica.json"

HOST = """
import os, sys
import cache_dit, tiny, torch
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig, steps_mask
from cache_dit.caching.block_adapters import BlockAdapterRegister

env, steps = os.environ, int(sys.argv[1])
whole = lambda name: int(env["SGLANG_CACHE_DIT_" + name])
assert env["SGLANG_CACHE_DIT_ENABLED"].lower() in ("true", "1")
listed = lambda name: [int(x.strip()) for x in env[f"SGLANG_CACHE_DIT_SCM_{name}_BINS"].split(",")]
preset = env["SGLANG_CACHE_DIT_SCM_PRESET"]
mask = steps_mask(compute_bins=listed("COMPUTE"), cache_bins=listed("CACHE"), total_steps=steps,
                  mask_policy=preset if preset != "none" else "medium")
taylor = None
if env["SGLANG_CACHE_DIT_TAYLORSEER"].lower() == "true":
    taylor = TaylorSeerCalibratorConfig(taylorseer_order=whole("TS_ORDER"))
pipe, counted = tiny.wan_pipeline(), []
pipe.transformer.blocks[-1].register_forward_hook(lambda *_: counted.append(1))
config = DBCacheConfig(
    num_inference_steps=steps, Fn_compute_blocks=whole("FN"), Bn_compute_blocks=whole("BN"),
    max_warmup_steps=whole("WARMUP"), residual_diff_threshold=0.24, max_continuous_cached_steps=whole("MC"),
    steps_computation_mask=mask, steps_computation_policy=env["SGLANG_CACHE_DIT_SCM_POLICY"],
)
cache_dit.enable_cache(pipe.transformer, cache_config=config, calibrator_config=taylor)
for request in range(2):
    if request:
        again = DBCacheConfig().reset(num_inference_steps=steps, steps_computation_mask=None,
                                      steps_computation_policy=None)
        cache_dit.refresh_context(pipe.transformer, cache_config=again, verbose=False)
    counted.clear()
    assert torch.isfinite(tiny.latents(pipe, steps=steps)).all()
    print("computed", len(counted))
"""


@pytest.mark.fast
@given(st.lists(st.booleans(), max_size=60))
def test_the_stretches_are_the_mask(tail):
    from cache_dit.caching.cache_interface import _steps_mask

    mask = [1, *map(int, tail), 0]
    computed, cached = bins(mask)
    assert _steps_mask(computed, cached, len(mask)) == mask
    computed, cached = bins([*mask, 1])
    assert _steps_mask(computed, cached, len(mask) + 1) == [*mask, 1]


def test_its_server_computes_these_steps_at_every_request():
    made = sglang(FORECAST, 17)
    environment = {**os.environ, **made, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", HOST, "50"], capture_output=True, text=True, check=False,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [f"computed {2 * 17}"] * 2, done.stdout + done.stderr


def test_the_command(tmp_path):
    from vaccel.cli import app

    out = tmp_path / "sglang.env"
    command = ["export", "sglang", str(FORECAST), "--budget", "17", "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "17 of 50 steps computed" in result.output
    assert dict(line.split("=") for line in out.read_text().splitlines()) == sglang(FORECAST, 17)
    sourced = subprocess.run(["sh", "-c", 'env $(cat "$0") env', str(out)], capture_output=True, text=True, check=True)
    assert f"SCM_COMPUTE_BINS={sglang(FORECAST, 17)['SGLANG_CACHE_DIT_SCM_COMPUTE_BINS']}" in sourced.stdout
    wrong = CliRunner().invoke(app, ["export", "sglang", str(LEMICA), "--budget", "2", "--out", str(out)])
    assert wrong.exit_code != 0
    assert dict(line.split("=") for line in out.read_text().splitlines()) == sglang(FORECAST, 17), "it is still there"


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="computes every step"):
        sglang(FORECAST, 50)
    with pytest.raises(ValueError, match="stands_in must be one of"):
        sglang(FORECAST, 17, stands_in="dmd")
    computed, cached = (list(map(int, sglang(FORECAST, 17)[f"SGLANG_CACHE_DIT_SCM_{n}_BINS"].split(",")))
                        for n in ("COMPUTE", "CACHE"))  # fmt: skip
    assert (sum(computed), sum(cached)) == (17, 33)
    assert vaccel.Forecast.load(FORECAST, 17).full_steps[0] == 0


def test_cache_dit_takes_no_calibrator_of_others():
    """Said in docs/serving.md: its calibrators are a fixed list.  When that changes, ours can be one."""
    from cache_dit.caching.cache_contexts.calibrators import Calibrator, CalibratorConfig

    assert Calibrator._supported_calibrators == ["taylorseer", "dmd", "foca"]
    with pytest.raises(AssertionError, match="not supported"):
        Calibrator(CalibratorConfig(calibrator_type="vaccel"))
