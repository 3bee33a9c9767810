"""LeMiCa's calibration: replays against runs from scratch, interruptions, several processes, artifacts."""

from __future__ import annotations

import json
import time

import oracle_caching
import processes
import pytest
import tiny
import torch
from diffusers import CogVideoXPipeline, FlowMatchEulerDiscreteScheduler
from test_oracle import SEED, SOLVERS, oracle_task, pipeline

import vaccel
from vaccel.calibrate import calibrate_lemica, calibrate_teacache
from vaccel.calibrate.replay import Replayer, Stretch
from vaccel.planning import artifacts

PROMPT, STEPS = "a red cat runs", 8


def sampling(pipe, steps=STEPS):
    call = tiny.COG_CALL if isinstance(pipe, CogVideoXPipeline) else tiny.WAN_CALL
    plain = {k: v for k, v in call.items() if k != "output_type"}
    return {**plain, "num_inference_steps": steps, "guidance_scale": 5.0}


def replayed(pipe, stretches, seed=0, **options):
    with Replayer(pipe, sampling(pipe), **options) as replayer:
        record = replayer.record(PROMPT, seed)
        return record, replayer.errors(record, stretches, PROMPT, seed)


def from_scratch(pipe, stretch, reuse):
    """mean |difference| of final latents, by two runs through the public face."""
    full = [i for i in range(STEPS) if not stretch.start < i < stretch.end]
    plain = tiny.latents(pipe, steps=STEPS)
    with vaccel.accelerate(pipe, vaccel.Schedule(full, num_steps=STEPS, reuse=reuse)):
        return (tiny.latents(pipe, steps=STEPS).double() - plain.double()).abs().mean().item()


@pytest.mark.parametrize("reuse", ["blocks", "residual"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_replay_is_the_run_from_scratch(solver, reuse):
    pipe, _ = pipeline(solver)
    plain = tiny.latents(pipe, steps=STEPS)
    record, (error,) = replayed(pipe, [Stretch(2, 5)], reuse=reuse)
    assert torch.equal(record.final, plain), "a recorded run is the plain one"
    assert error == pytest.approx(from_scratch(pipe, Stretch(2, 5), reuse), rel=1e-12)
    assert error > 0
    _, (nothing,) = replayed(pipe, [Stretch(3, 4)], reuse=reuse)
    assert nothing == 0, "exactly: nothing was skipped"
    assert torch.equal(tiny.latents(pipe, steps=STEPS), plain), "the pipeline is left as it was"


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_replays_in_one_batch_are_those_alone(name):
    pipe, _ = tiny.family(name)
    stretches = [Stretch(start, 6) for start in (0, 2, 4)]
    _, together = replayed(pipe, stretches)
    alone = [replayed(pipe, [s])[1][0] for s in stretches]
    assert together == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("reuse", ["blocks", "residual"])
@pytest.mark.parametrize("solver", ["unipc", "cog-dpm"])
def test_an_edge_is_the_oracles(solver, reuse):
    pipe, _ = pipeline(solver)
    _, (error,) = replayed(pipe, [Stretch(1, 4)], SEED, reuse=reuse)
    expected = oracle_caching.lemica_edge(oracle_task(solver, PROMPT, 5.0, STEPS), 1, 4, reuse=reuse)
    assert error == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("tails", ["coarse", "small", "none"])
def test_surrogate_tails(tails):
    pipe, small = tiny.family("wan")
    with Replayer(pipe, sampling(pipe), small=small, tails=tails) as replayer:
        record = replayer.record(PROMPT, 0)
        assert replayer.errors(record, [Stretch(2, 3)], PROMPT, 0) == [0.0]
        before = replayer.forwards
        (error,) = replayer.errors(record, [Stretch(2, 4)], PROMPT, 0)
        assert error > 0
        # Steps 4 to 7, two branches, the edge and its reference: 4, 6 and 7 with the coarse tail.
        assert (replayer.forwards - before, replayer.small_forwards > 0) == {
            "coarse": (12, False), "small": (0, True), "none": (0, False)
        }[tails]  # fmt: skip


def calibrated(path, steps=STEPS, prompts=(PROMPT,), pipe=None, **options):
    pipe = pipe or tiny.wan_pipeline()
    return calibrate_lemica(pipe, list(prompts), path, call=sampling(pipe, steps), max_gap=3, **options)


def test_the_artifact_and_the_methods_made_of_it(tmp_path):
    path, pipe = tmp_path / "lemica.json", tiny.wan_pipeline()
    data = calibrated(path, pipe=pipe, batch=2, prompts=[PROMPT, "a blue dog sleeps"])
    assert len(data["samples"]) == 2
    (sample, _) = data["samples"].values()
    assert set(sample["errors"]) == {f"{i}-{j}" for j in range(2, STEPS) for i in range(max(0, j - 3), j - 1)}
    assert not list(tmp_path.glob("*.safetensors"))
    plain = tiny.latents(pipe, steps=STEPS)
    for budget in range(4, STEPS + 1):
        method = vaccel.LeMiCa.load(path, budget=budget)
        assert len(method.full_steps) == budget
        assert vaccel.method_from_json(json.loads(json.dumps(method.to_json()))) == method
        with vaccel.accelerate(pipe, method) as handle:
            made = tiny.latents(pipe, steps=STEPS)
            assert handle.trace.calls == {"large": 2 * budget, "small": 0}
        assert torch.equal(made, plain) == (budget == STEPS)
    with pytest.raises(ValueError, match="can make 4 to 8"):
        vaccel.LeMiCa.load(path, budget=3)
    with pytest.raises(ValueError, match="steps"):
        vaccel.LeMiCa.load(path)
    summed = vaccel.LeMiCa.load(path, budget=5, objective="sum")
    assert len(summed.full_steps) == 5


def test_another_pipeline_is_refused(tmp_path):
    calibrated(tmp_path / "lemica.json")
    method = vaccel.LeMiCa.load(tmp_path / "lemica.json", budget=5)
    other_model = tiny.wan_pipeline(transformer=tiny.wan_transformer(layers=3))
    with pytest.raises(ValueError, match="calibrated with another pipeline: model's configuration"):
        vaccel.accelerate(other_model, method)
    other_shift = tiny.wan_pipeline(tiny.unipc(shift=5.0))
    with pytest.raises(ValueError, match=r"scheduler's flow_shift 3.0, here 5.0"):
        vaccel.accelerate(other_shift, method)
    euler = tiny.wan_pipeline(FlowMatchEulerDiscreteScheduler(shift=3.0))
    with pytest.raises(ValueError, match="scheduler UniPCMultistepScheduler, here FlowMatchEuler"):
        vaccel.accelerate(euler, method)
    same = tiny.wan_pipeline()
    with vaccel.accelerate(same, method), pytest.raises(ValueError, match="for 8 steps, the run has 12"):
        tiny.latents(same, steps=12)
    anyway = vaccel.LeMiCa.load(tmp_path / "lemica.json", budget=5, allow_mismatch=True)
    with vaccel.accelerate(other_shift, anyway) as handle:
        tiny.latents(other_shift, steps=STEPS)
        assert handle.trace.notes == ["calibrated with another pipeline: scheduler's flow_shift 3.0, here 5.0"]


def test_coefficients_of_another_model_are_refused(tmp_path):
    path, call = tmp_path / "teacache.json", {**tiny.WAN_CALL, "num_inference_steps": STEPS}
    calibrate_teacache(tiny.wan_pipeline(), ["a cat"], path, call=call)
    method = vaccel.TeaCache.load(path, threshold=0.2)
    other = tiny.wan_pipeline(transformer=tiny.wan_transformer(layers=3))
    with pytest.raises(ValueError, match="TeaCache was calibrated with another pipeline: model's configuration"):
        vaccel.accelerate(other, method)
    with vaccel.accelerate(other, vaccel.TeaCache.load(path, threshold=0.2, allow_mismatch=True)) as handle:
        tiny.latents(other, steps=STEPS)
        assert "calibrated with another pipeline: model's configuration" in handle.trace.notes[0]
    euler = tiny.wan_pipeline(FlowMatchEulerDiscreteScheduler(shift=3.0))
    with vaccel.accelerate(euler, method) as handle:
        tiny.latents(euler, steps=STEPS)
        assert "calibrated with another solver" in handle.trace.notes[0]
    assert vaccel.method_from_json(method.to_json()) == method


def test_broken_artifacts(tmp_path):
    path = tmp_path / "lemica.json"
    calibrated(path)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="cut short"):
        vaccel.LeMiCa.load(path, budget=5)
    edited = json.loads(text)
    (sample,) = edited["samples"].values()
    sample["errors"]["0-2"] = 0.0
    path.write_text(json.dumps(edited))
    with pytest.raises(ValueError, match="was changed after"):
        vaccel.LeMiCa.load(path, budget=5)
    path.write_text(text)
    with pytest.raises(ValueError, match="not a teacache artifact but one of lemica"):
        vaccel.TeaCache.load(path)
    pipe = tiny.wan_pipeline()
    with pytest.raises(ValueError, match="another max_gap"):
        calibrate_lemica(pipe, [PROMPT], path, call=sampling(pipe), max_gap=4)


def two_prompts(path, told=None):
    """What a process of its own does; with ``told`` it says how far it is and gives time to kill it."""

    def slowly(done, total, what):
        told.send((done, total))
        time.sleep(0.2)

    calibrated(path, prompts=[PROMPT, "a blue dog sleeps"], steps=12, **({"progress": slowly} if told else {}))


def test_killed_and_resumed_it_is_the_same_artifact(tmp_path):
    whole = tmp_path / "whole.json"
    two_prompts(whole)
    killed = tmp_path / "killed.json"
    seen, told = processes.pipe()
    process = processes.start(two_prompts, killed, told)
    for _ in range(5):
        assert seen.poll(120)
        seen.recv()
    process.kill()  # with SIGKILL
    process.join()
    assert killed.exists()
    done = len(next(iter(artifacts.read(killed, "lemica")["samples"].values()))["errors"])
    assert 0 < done < 20
    seen = []
    calibrated(killed, prompts=[PROMPT, "a blue dog sleeps"], steps=12, progress=lambda *a: seen.append(a))
    assert killed.read_text() == whole.read_text()
    assert list(tmp_path.glob("*.safetensors*")) == []


def test_processes_share_the_samples(tmp_path):
    alone, shared = tmp_path / "alone.json", tmp_path / "shared.json"
    two_prompts(alone)
    processes.together(two_prompts, shared)
    assert shared.read_text() == alone.read_text()
    assert list(tmp_path.glob("*.part*")) == []


def test_edges_that_min_budget_cannot_need_are_left_out_and_the_schedule_stays(tmp_path):
    full = calibrated(tmp_path / "full.json", steps=16)
    less = calibrated(tmp_path / "less.json", steps=16, min_budget=8)
    with pytest.warns(DeprecationWarning, match="min_budget"):  # and the same file: there is nothing left to measure
        assert calibrated(tmp_path / "less.json", steps=16, hopeless=8) == less
    (all_edges,), (some,) = full["samples"].values(), less["samples"].values()
    assert set(some["errors"]) <= set(all_edges["errors"])
    assert (
        vaccel.LeMiCa.load(tmp_path / "less.json", budget=8).full_steps
        == vaccel.LeMiCa.load(tmp_path / "full.json", budget=8).full_steps
    )


def test_settings_that_do_not_fit(tmp_path):
    pipe = tiny.wan_pipeline()
    for options, message in [
        ({"max_gap": 1}, "max_gap"), ({"tails": "small"}, "needs the small model"),
        ({"tails": "none", "compare": "pixels"}, "no pixels"), ({"min_budget": 2}, "no schedule"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            calibrate_lemica(pipe, [PROMPT], tmp_path / "x.json", **{"call": sampling(pipe), "max_gap": 3, **options})


def test_pixels(tmp_path):
    pipe = tiny.wan_pipeline()
    data = calibrated(tmp_path / "new" / "folder" / "pixels.json", steps=4, pipe=pipe, compare="pixels")
    assert all(0 < e < 1 for s in data["samples"].values() for e in s["errors"].values())
