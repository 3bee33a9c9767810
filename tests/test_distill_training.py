"""Training: killed and resumed to the same curve, two processes as one, accumulation, checkpointing, what is saved."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import processes
import pytest
import tiny
import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file

import vaccel
from vaccel.distill import plots, prepare
from vaccel.distill.settings import Distillation
from vaccel.distill.stages import Samples, train
from vaccel.distill.trainer import Trainer, _check_precision
from vaccel.planning import artifacts

CALL = {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 3.0, "max_sequence_length": 8}
SMALL = {
    "split": 6, "points": 10, "shift": 5.0, "guidance": 3.0, "lag": 1, "rank": 2, "alpha": 4, "head_width": 32,
    "batch": 4, "rate": 1e-3, "detail_rate": 1e-3, "head_rate": 1e-3,
}  # fmt: skip


def clips(count=6):
    g = torch.Generator().manual_seed(0)
    for i in range(count):
        yield f"a cat number {i}", torch.rand(9, 32, 32, 3, generator=g)


def no_pictures():
    """The plot of the losses takes Matplotlib twice as long as all of these trainings; one test looks at it."""
    return mock.patch.object(plots, "losses")


@pytest.fixture(autouse=True)
def _no_pictures(request):
    with contextlib.nullcontext() if request.function is test_what_is_trained_and_what_is_not else no_pictures():
        yield


def prepared(folder):
    """The training data that all of these trainings read."""
    prepare(tiny.wan_pipeline(), clips(), folder, call=CALL, shard_size=4)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("data"))


def settings(stage, steps=4, **changes):
    return Distillation(stage, **{**SMALL, "iterations": steps, "detail_iterations": steps, **changes})


def curve(out, stage):
    lines = [json.loads(s) for s in (out / "training" / stage / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def both_stages(data, out, pipe=None, **options):
    pipe = pipe or tiny.wan_pipeline()
    train(pipe, data, out, settings("semantic"), **options)
    train(pipe, data, out, settings("detail"), **options)
    return out


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    with no_pictures():
        return both_stages(data, tmp_path_factory.mktemp("reference"))


def semantic_of(reference: Path, out: Path):
    """The reference's experts without its training: a detail stage there begins anew on the same semantic expert."""
    shutil.copytree(reference, out, ignore=shutil.ignore_patterns("training"))


def close(a: Path, b: Path, rtol):
    """Loss curves agree within rounding."""
    for stage in ("semantic", "detail"):
        for one, two in zip(curve(a, stage), curve(b, stage), strict=True):
            assert one.keys() == two.keys()
            for key in one:
                assert one[key] == pytest.approx(two[key], rel=rtol, abs=1e-7), (stage, one["iteration"], key)


def test_what_is_trained_and_what_is_not(data, tmp_path):
    pipe = tiny.wan_pipeline()
    pipe.transformer.blocks[0].requires_grad_(False)
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    flags = [p.requires_grad for p in pipe.transformer.parameters()]
    out = both_stages(data, tmp_path / "out", pipe)
    assert all(torch.equal(v, before[k]) for k, v in pipe.transformer.state_dict().items())
    assert flags == [p.requires_grad for p in pipe.transformer.parameters()]
    semantic, detail = load_file(out / "semantic.safetensors"), load_file(out / "detail.safetensors")
    moved = [k for k in semantic if not torch.equal(semantic[k], before[k])]
    assert len(moved) > 0.9 * len(before)
    assert {k.split(".")[-2] for k in detail if "lora" in k} == {"lora_A", "lora_B"}
    own = {k.split(".")[0] for k in detail if "lora" not in k}
    assert own == {"condition_embedder", "scale_shift_table", "proj_out"}
    assert all(torch.any(v != 0) for k, v in detail.items() if "lora_B" in k)
    lines = curve(out, "detail")
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    described = json.loads((out / "dual_expert.json").read_text())
    assert list(described["training"]) == ["semantic", "detail"]
    assert set(lines[0]) == {
        "iteration", "consistency", "adversarial", "matching", "total", "discriminator", "gradient",
    }  # fmt: skip
    assert (out / "training" / "semantic" / "losses.png").stat().st_size > 1000


def test_the_saved_experts_run(reference):
    pipe = tiny.wan_pipeline()
    plain = tiny.latents(pipe, guidance=1.0, steps=4)
    with vaccel.accelerate(pipe, vaccel.DualExpert(reference, steps=4)) as handle:
        distilled = tiny.latents(pipe, steps=4)
        assert handle.trace.timeline() == "eeee"
    assert distilled.isfinite().all()
    assert not torch.equal(distilled, plain)
    assert torch.equal(plain, tiny.latents(pipe, guidance=1.0, steps=4))


@pytest.mark.parametrize("stage", ["semantic", "detail"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_stopped_and_resumed_is_the_same_curve(data, reference, tmp_path, stage, ema):
    def run(out, steps, stop=None):
        if stage == "detail" and not out.exists():
            semantic_of(reference, out)

        def progress(done, total, what):
            if done == stop:
                raise KeyboardInterrupt

        train(tiny.wan_pipeline(), data, out, settings(stage, steps, ema=ema), save_every=1, progress=progress)

    run(tmp_path / "whole", 5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", 5, stop=2)
    run(tmp_path / "parts", 4)  # longer training of the same thing goes on
    run(tmp_path / "parts", 5)
    assert curve(tmp_path / "parts", stage) == curve(tmp_path / "whole", stage)
    name = f"{stage}.safetensors"
    one, two = (load_file(tmp_path / folder / name) for folder in ("whole", "parts"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def trained(data, out, stages=("semantic", "detail"), steps=4, parts=1, name="wan", pause=0.0):
    """What a process of its own does; ``pause`` seconds an iteration, that there is time to kill it."""
    with no_pictures():
        for stage in stages:
            train(
                tiny.family(name)[0], data, out, settings(stage, steps), save_every=2, parts=parts,
                progress=lambda *_: time.sleep(pause),
            )  # fmt: skip


@pytest.mark.parametrize("stage", ["semantic", "detail"])
def test_killed_and_resumed_is_the_same_curve(data, reference, tmp_path, stage):
    """kill -9, at whatever point it hits after the first checkpoint."""
    outs = {name: tmp_path / name for name in ("whole", "killed")}
    if stage == "detail":
        for out in outs.values():
            semantic_of(reference, out)
    train(tiny.wan_pipeline(), data, outs["whole"], settings(stage, 14), save_every=2)
    given = trained, data, outs["killed"], [stage], 14, 1, "wan"
    running = processes.start(*given, 0.1)
    log, deadline = outs["killed"] / "training" / stage / "log.jsonl", time.monotonic() + 120
    while (not log.exists() or len(log.read_text().splitlines()) < 5) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.kill()  # with SIGKILL
    running.join()
    assert 5 <= len(log.read_text().splitlines()) < 14
    processes.finish(processes.start(*given))
    whole, killed = curve(outs["whole"], stage), curve(outs["killed"], stage)
    assert [line["iteration"] for line in killed] == list(range(1, 15))
    for one, two in zip(whole, killed, strict=True):  # another process: rounding
        for key in one:
            assert one[key] == pytest.approx(two[key], rel=1e-3, abs=1e-6), (one["iteration"], key)


def test_two_processes_are_one(data, reference, tmp_path):
    """gloo, the same global batch: each process half of every batch."""
    processes.together(trained, data, tmp_path / "two")
    close(reference, tmp_path / "two", rtol=1e-3)


def test_two_processes_with_weights_that_a_forward_leaves_out(tmp_path):
    """Qwen-Image's last text branch has no gradient; in two parts, of which only the last is exchanged."""
    pipe, g = tiny.qwen_pipeline(), torch.Generator().manual_seed(0)
    call = {"height": 32, "width": 32, "true_cfg_scale": 3.0}
    pictures = [("a cat", torch.rand(1, 32, 32, 3, generator=g)) for _ in range(4)]
    prepare(pipe, pictures, tmp_path / "data", call=call, negative_prompt="")
    train(pipe, tmp_path / "data", tmp_path / "one", settings("semantic", 2), parts=4)
    processes.together(trained, tmp_path / "data", tmp_path / "two", ["semantic"], 2, 2, "qwen-image")
    for one, two in zip(*(curve(tmp_path / n, "semantic") for n in ("one", "two")), strict=True):
        assert one == pytest.approx(two, rel=1e-3)


def test_accumulated_is_at_once(data, reference, tmp_path):
    close(reference, both_stages(data, tmp_path / "parts", parts=2), rtol=1e-3)


def test_checkpointing_changes_nothing(data, reference, tmp_path):
    """And is on: in every backward pass the blocks that it goes through run again, the teacher's with the GAN."""
    pipe, ran = tiny.wan_pipeline(), []
    pipe.transformer.blocks[0].register_forward_pre_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    close(reference, both_stages(data, tmp_path / "again", pipe, checkpointing=True), rtol=1e-3)
    assert not pipe.transformer.is_gradient_checkpointing
    semantic, detail = 4, 4  # iterations; the student is a copy, with the hook
    assert ran.count(True) == 2 * semantic + 2 * (detail + detail)


def in_mixed_precision(data, out):
    """In a process of its own: Accelerate's precision is its process's."""
    with no_pictures():
        for stage in ("semantic", "detail"):
            pipe = tiny.wan_pipeline()
            pipe.transformer.bfloat16()
            train(pipe, data, out, settings(stage), accelerator=Accelerator(mixed_precision="bf16", cpu=True))


def test_mixed_precision(data, reference, tmp_path):
    """A teacher in bf16: what is trained is fp32 and follows the fp32 training's curve as far as bf16 goes."""
    processes.finish(processes.start(in_mixed_precision, data, tmp_path))
    assert {t.dtype for t in load_file(tmp_path / "detail.safetensors").values()} == {torch.bfloat16}
    kept = load_file(tmp_path / "training" / "detail" / "checkpoint.safetensors")
    assert {t.dtype for k, t in kept.items() if k.startswith("student.")} == {torch.float32}
    for stage in ("semantic", "detail"):
        for one, two in zip(curve(tmp_path, stage), curve(reference, stage), strict=True):
            for key in ("consistency", "gradient"):
                assert one[key] == pytest.approx(two[key], rel=0.1), (stage, key)
    ours, theirs = (load_file(out / "detail.safetensors") for out in (tmp_path, reference))
    moved = torch.cat([v.flatten() for k, v in theirs.items() if "lora_B" in k])
    difference = torch.cat([(ours[k].float() - v).flatten() for k, v in theirs.items() if "lora_B" in k])
    assert difference.norm() < 0.5 * moved.norm()
    pipe = tiny.wan_pipeline()
    pipe.transformer.bfloat16()
    with pytest.raises(ValueError, match="train with mixed precision"):
        train(pipe, data, tmp_path / "none", settings("semantic"))


def test_samples_on_the_way(data, tmp_path):
    pipe = tiny.wan_pipeline()
    samples = Samples(("a cat",), every=2, steps=2)
    call = {k: v for k, v in CALL.items() if k != "guidance_scale"}
    train(pipe, data, tmp_path, settings("semantic", 4), samples=samples, call=call)
    pictures = sorted(p.name for p in (tmp_path / "training" / "semantic").glob("samples-*.png"))
    assert pictures == ["samples-000002.png", "samples-000004.png"]


def test_an_interrupted_update_is_made_again(data, tmp_path, monkeypatch):
    """Ctrl-C between the student's step and the discriminator's: the checkpoint before it is what stands."""
    whole = both_stages(data, tmp_path / "whole")
    out = tmp_path / "parts"
    semantic_of(whole, out)
    update, calls = Trainer._update, []

    def stopped(self, optimizer, parameters):
        calls.append(1)
        if len(calls) == 6:  # the heads' of the third iteration
            raise KeyboardInterrupt
        return update(self, optimizer, parameters)

    monkeypatch.setattr(Trainer, "_update", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(tiny.wan_pipeline(), data, out, settings("detail"), save_every=1)
    monkeypatch.undo()
    train(tiny.wan_pipeline(), data, out, settings("detail"), save_every=1)
    assert curve(out, "detail") == curve(whole, "detail")


def test_a_log_from_before_the_first_checkpoint_is_begun_anew(data, tmp_path):
    log = tmp_path / "training" / "semantic" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"iteration": 1, "total": 5.0}\n{"iteration": 2, "to')
    train(tiny.wan_pipeline(), data, tmp_path, settings("semantic", 2))
    assert [line["iteration"] for line in curve(tmp_path, "semantic")] == [1, 2]


def test_nothing_that_is_there_is_lost(data, reference, tmp_path):
    """A stage that is done is left alone; others are not replaced; a detail expert stays with its semantic one."""
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    before = {p.name: p.read_bytes() for p in out.glob("*.*")}
    train(tiny.wan_pipeline(), data, out, settings("detail"))
    assert before == {p.name: p.read_bytes() for p in out.glob("*.*")}
    for stage in ("semantic", "single"):
        with pytest.raises(ValueError, match=r"holds a detail.* expert, which this would replace"):
            train(tiny.wan_pipeline(), data, out, settings(stage))
    assert before == {p.name: p.read_bytes() for p in out.glob("*.*")}
    again = tmp_path / "again"
    train(tiny.wan_pipeline(), data, again, settings("semantic", 2))
    train(tiny.wan_pipeline(), data, again, settings("detail", 2))
    (again / "detail.safetensors").unlink()
    described = json.loads((again / "dual_expert.json").read_text())
    described.pop("digest")
    described |= {"detail": {"kind": "none"}, "training": {"semantic": described["training"]["semantic"]}}
    artifacts.write(again / "dual_expert.json", described)
    train(tiny.wan_pipeline(), data, again, settings("semantic", 3))  # another semantic expert than detail's was
    with pytest.raises(ValueError, match=r"made with other semantic: remove .*detail to start anew"):
        train(tiny.wan_pipeline(), data, again, settings("detail", 3))
    other = tmp_path / "other_data"
    prepare(tiny.wan_pipeline(), clips(5), other, call=CALL, shard_size=4)
    with pytest.raises(ValueError, match="made with other data"):
        train(tiny.wan_pipeline(), other, tmp_path / "again", settings("semantic", 4))


def test_guidance_needs_its_branch(tmp_path):
    pipe = tiny.wan_pipeline()
    prepare(pipe, clips(2), tmp_path / "data", call={**CALL, "guidance_scale": 1.0})
    with pytest.raises(ValueError, match="holds no unconditional branch"):
        train(pipe, tmp_path / "data", tmp_path / "out", settings("semantic", 1, batch=2))
    train(pipe, tmp_path / "data", tmp_path / "out", settings("semantic", 1, batch=2, guidance=1.0))


def test_refusals(data, reference, tmp_path):
    pipe = tiny.wan_pipeline()
    with pytest.raises(ValueError, match="no semantic expert yet"):
        train(pipe, data, tmp_path, settings("detail"))
    with pytest.raises(ValueError, match="4 samples an iteration do not fill 3 parts"):
        train(pipe, data, tmp_path, settings("semantic"), parts=3)
    with pytest.raises(ValueError, match="latent frames back"):
        train(pipe, data, tmp_path, settings("semantic", lag=3))
    with pytest.raises(ValueError, match="'no' or 'bf16'"):
        _check_precision(SimpleNamespace(distributed_type=DistributedType.NO, mixed_precision="fp16"), torch.float32)
    other = tiny.wan_pipeline(transformer=tiny.wan_transformer(layers=3))
    with pytest.raises(ValueError, match="prepare the data"):
        train(other, data, tmp_path, settings("semantic"))
    train(pipe, data, tmp_path / "made", settings("semantic", 1))
    for change in ({"split": 5}, {"shift": 3.0}):
        with pytest.raises(ValueError, match="the same split, points and shift"):
            train(pipe, data, tmp_path / "made", settings("detail", 1, **change))
    with pytest.raises(ValueError, match=r"made with another rate \(rate 0.001 there, 0.01 here\)"):
        train(pipe, data, tmp_path / "made", settings("semantic", 2, rate=1e-2))


def test_cogvideox_and_qwen_image_train_too(tmp_path):
    """The families' descriptions are all a stage needs: diffusion with batched guidance, images without frames."""
    g = torch.Generator().manual_seed(0)
    given = {
        "cogvideox": (tiny.COG_CALL | {"guidance_scale": 3.0}, (9, 64, 64, 3), {"shift": None, "batch": 2}),
        "qwen-image": ({"height": 32, "width": 32, "true_cfg_scale": 3.0}, (1, 32, 32, 3), {"batch": 1}),
    }
    for name, (call, shape, changes) in given.items():
        pipe, _ = tiny.family(name)
        call = {k: v for k, v in call.items() if k != "output_type"}
        folder = tmp_path / name
        prepare(
            pipe, [(f"a cat {i}", torch.rand(shape, generator=g)) for i in range(2)], folder / "data", call=call,
            negative_prompt="" if name == "qwen-image" else None,
        )  # fmt: skip
        for stage in ("semantic", "detail"):
            train(pipe, folder / "data", folder / "out", settings(stage, 2, **changes))
        with vaccel.accelerate(pipe, vaccel.DualExpert(folder / "out", steps=3)) as handle:
            assert tiny.latents(pipe, steps=3).isfinite().all()
            assert handle.trace.timeline() == "eee"
