"""MixCache's calibration: what it measures, interruptions, artifacts."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import torch

import vaccel
from vaccel.calibrate import calibrate_mixcache
from vaccel.calibrate.replay import StandIn
from vaccel.planning.joining import mixcache_fields as fields

STEPS = 10
PROMPTS = ["a red cat runs", "a blue dog sleeps"]


def calibrated(path, name="wan", prompts=PROMPTS, guidance=5.0, **options):
    pipe, _ = tiny.family(name)
    size = {"wan": tiny.WAN_CALL, "cogvideox": tiny.COG_CALL, "qwen-image": tiny.QWEN_CALL}[name]
    call = {k: v for k, v in size.items() if k != "output_type"} | {"num_inference_steps": STEPS}
    if name == "qwen-image":
        call |= {"true_cfg_scale": guidance, "negative_prompt": "" if guidance > 1 else None}
    else:
        call |= {"guidance_scale": guidance}
    plain = tiny.latents(pipe, steps=STEPS)
    data = calibrate_mixcache(pipe, prompts, path, call=call, **options)
    assert torch.equal(tiny.latents(pipe, steps=STEPS), plain), "the pipeline is left as it was"
    return data, pipe


@pytest.mark.parametrize("guidance", [5.0, 1.0], ids=["cfg", "no-cfg"])
@pytest.mark.parametrize("name", ["wan", "cogvideox", "qwen-image"])
def test_what_is_measured(tmp_path, name, guidance):
    data, pipe = calibrated(tmp_path / "mixcache.json", name, PROMPTS[:1], guidance)
    method = vaccel.MixCache.load(tmp_path / "mixcache.json", intervals="eff")
    blocks = method.candidates
    assert blocks == vaccel.MixCache().keeps_states(len(StandIn(pipe, None).blocks))
    assert [len(row) for row in method.block_impacts] == [STEPS] * len(blocks)
    (sample,) = data["samples"].values()
    assert ("cfg" in sample["impacts"]) == (guidance > 1)
    assert all(math.isfinite(i) and i > 0 for row in sample["impacts"].values() for i in row)
    assert method.theta > 0
    assert method.d1 <= method.d2
    assert vaccel.method_from_json(json.loads(json.dumps(method.to_json()))) == method
    with vaccel.accelerate(pipe, method) as handle:
        tiny.latents(pipe, steps=STEPS, guidance=guidance)
        assert len(handle.trace.timeline()) == STEPS


def test_the_impact_of_an_output_is_the_noise_it_was_given(tmp_path):
    """Noise N(mu, sigma) on an output of mean magnitude a changes it by about E|N| / a."""
    data, _ = calibrated(tmp_path / "mixcache.json", prompts=PROMPTS[:1], guidance=1.0)
    (sample,) = data["samples"].values()
    impacts, changes = sample["impacts"]["step"], sample["changes"]
    # The noise is as large as what one step changes, so its impact is of that size too.
    assert min(changes) / 3 < sum(impacts) / len(impacts) < 3 * max(changes)


def test_interrupted_it_goes_on_to_the_same_artifact(tmp_path):
    whole, part = tmp_path / "whole.json", tmp_path / "part.json"
    calibrated(whole)

    def stop(done, total, what):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated(part, progress=stop)
    calibrated(part)
    assert part.read_text() == whole.read_text()


def test_another_model_is_refused(tmp_path):
    calibrated(tmp_path / "mixcache.json", prompts=PROMPTS[:1])
    method = vaccel.MixCache.load(tmp_path / "mixcache.json")
    with pytest.raises(ValueError, match="calibrated with another pipeline: model's configuration"):
        vaccel.accelerate(tiny.wan_pipeline(transformer=tiny.wan_transformer(layers=6)), method)
    same = tiny.wan_pipeline()
    with vaccel.accelerate(same, method), pytest.raises(ValueError, match="one row for each of blocks"):
        tiny.latents(same, steps=STEPS + 1)


def test_thresholds():
    settled = [0.5, 0.4, 0.3, 0.2, 0.1, *[0.1] * 9]
    wide = [0.9] * 8 + [0.1, 0.2, 0.3, 0.4, 0.5]
    rows = {"step": [0.1], "cfg": [0.3], "2": [0.5] * 4}
    found = fields({"a": {"changes": settled, "wide_changes": wide, "impacts": rows}}, (2,))
    assert found["theta"] == pytest.approx(0.1)
    assert 0.1 < found["d1"] < found["d2"] < 0.9
    assert (found["step_impact"], found["cfg_impact"], found["block_impacts"]) == (0.1, 0.3, [[0.5] * 4])


def test_a_candidate_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="no blocks of"):
        calibrated(tmp_path / "mixcache.json", candidates=(9,))
