"""Few-step sampling with two distilled experts: against a loop written here, and everything put back afterwards."""

from __future__ import annotations

import json

import accelerate as hf_accelerate
import pytest
import tiny
import torch
from diffusers import CogVideoXDPMScheduler, FirstBlockCacheConfig
from made_experts import (
    BOUNDARY,
    FAMILIES,
    MAKE,
    SHIFT,
    assert_given_back,
    folder,
    kept,
    loop,
    make,
    parking,
    pipe,
    pipeline,
)
from test_compile import close, counting
from test_graphs import rehearsal

import vaccel
from vaccel.engine.run import Run
from vaccel.integrations.diffusers.sampler import ExpertScheduler
from vaccel.planning.trajectory import Trajectory, expert_times

__all__ = ["counting", "folder", "parking", "pipe", "rehearsal"]  # fixtures

# -- times and the sampler ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "boundary", "sigmas"),
    [
        (4, 0.76, [1, 0.992, 0.9818, 0.9124]),
        (8, 0.76, [1, 0.9963, 0.992, 0.9873, 0.9818, 0.9575, 0.9124, 0.7995]),
        (2, 0.76, [1, 0.9818]),
        (2, 0.70, [1, 0.9754]),
        (3, 0.76, [1, 0.992, 0.9818]),
    ],
)
def test_published_noise_levels(steps, boundary, sigmas, wan):
    sampler = ExpertScheduler(Trajectory(shift=SHIFT), boundary, steps, wan.scheduler)
    for asked in ({"num_inference_steps": 50}, {"sigmas": [1.0, 0.5], "mu": 0.7}, {"timesteps": [1]}):
        before = sampler.timesteps
        sampler.set_timesteps(**asked, device="cpu")
        assert sampler.timesteps is not before
        assert sampler.timesteps.dtype == torch.float32
        assert sampler.timesteps.tolist() == pytest.approx([1000 * s for s in sigmas], abs=0.06)
        assert sampler.sigmas.tolist() == pytest.approx([*sigmas, 0], abs=6e-5)
    assert sampler.config.flow_shift == wan.scheduler.config.flow_shift
    assert (sampler.order, sampler.init_noise_sigma, len(sampler)) == (1, 1.0, 1000)


def test_the_sampler_makes_its_steps_and_no_more(wan):
    sampler = ExpertScheduler(Trajectory(shift=3.0), 0.5, 2, wan.scheduler)
    x, v = torch.randn(2, 3, dtype=torch.bfloat16), torch.randn(2, 3, dtype=torch.bfloat16)
    first = sampler.step(v, sampler.timesteps[0], x, generator=None).prev_sample
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, (x.float() + (0.75 - 1) * v.float()).bfloat16())
    (last,) = sampler.step(v, sampler.timesteps[1], first, return_dict=False)
    assert torch.equal(last, (first.float() - 0.75 * v.float()).bfloat16())
    with pytest.raises(ValueError, match="all 2 steps are made"):
        sampler.step(v, None, last)
    assert sampler.scale_model_input(x, 1) is x
    noisy = sampler.add_noise(x.float(), v.float(), sampler.timesteps[1:])
    assert torch.allclose(noisy, 0.25 * x.float() + 0.75 * v.float())


def test_as_plain_data(tmp_path):
    method = vaccel.DualExpert(tmp_path / "none", steps=8)
    assert method.folder == str(tmp_path / "none")
    assert vaccel.method_from_json(json.loads(json.dumps(method.to_json()))) == method
    for steps in (1, 0, 4.0, True, "4"):
        with pytest.raises(ValueError, match="at least 2"):
            vaccel.DualExpert("x", steps=steps)
    with pytest.raises(ValueError, match="vaccel distill"):
        vaccel.DualExpert.preset("wan2.1-t2v-14b")


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_is_the_plain_loop(name, merged, tmp_path):
    pipe, folder = pipeline(name), make(tmp_path, name)
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder, merged=merged)) as handle:
        for other in (None, vaccel.Schedule([0, 2], num_steps=4)):  # their weights are in it for every call
            with pytest.raises(ValueError, match="changes the pipeline's weights, for every call: remove"):
                handle.using(other)
        for prompts in (["a red cat runs"], ["a red cat runs", "a blue dog sleeps"]):
            other = pipeline(name)  # shares nothing with the accelerated one
            x, expected = loop(other, folder, name, prompts)
            alone = tiny.latents(pipe, prompts, latents=x, guidance=1.0, steps=4)
            guided = tiny.latents(pipe, prompts, latents=x, guidance=5.0, steps=4)
            assert close(alone, expected)
            assert torch.equal(alone, guided) or (name == "cogvideox" and close(guided, alone))
            for trace in handle.traces[-2:]:
                assert trace.timeline() == "eeee"
                assert [step.action.expert for step in trace.steps] == [0, 0, 1, 1]
                assert trace.calls == {"large": 4, "small": 0}
                assert trace.finished
                assert trace.notes == []


@pytest.mark.parametrize("name", FAMILIES)
def test_guidance_changes_no_bit(name, tmp_path):
    pipe, folder = pipeline(name), make(tmp_path, name)
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        runs = [tiny.latents(pipe, steps=4, guidance=scale) for scale in (1.0, 1.5, 7.0)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_a_loop_that_writes_into_one_branch_changes_no_other(pipe, folder, monkeypatch):
    original, first, same = Run.call, [], []

    def call(self, *given):
        output = original(self, *given)
        if self.calls == 1:
            first[:] = [output.clone()]
            output.zero_()
        else:
            same.append(torch.equal(output, first[0]))
        return output

    monkeypatch.setattr(Run, "call", call)
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        tiny.latents(pipe, steps=4)
    assert same == [True] * 4


@pytest.mark.parametrize(("kind", "semantic"), [("full", True), ("none", True), ("lora", False), ("full", False)])
def test_other_kinds_of_experts(kind, semantic, pipe, tmp_path):
    folder, before = make(tmp_path, kind=kind, semantic=semantic), kept(pipe)
    x, expected = loop(pipe, folder, "wan", ["a red cat runs"])
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)) as handle:
        assert close(tiny.latents(pipe, steps=4, latents=x), expected)
        whole = sum(p.nbytes for p in pipe.transformer.parameters())
        detail = handle.expert_bytes["detail"]
        assert detail == {"full": whole, "none": 0}.get(kind, detail)
        assert handle.expert_bytes["parked"] == whole * semantic
    assert handle.expert_bytes == {"detail": 0, "parked": 0}
    assert_given_back(pipe, before)


def test_after_a_cache_of_diffusers(pipe, folder):
    """A cache that was switched off leaves empty registries of hooks on the blocks."""
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        expected = tiny.latents(pipe, steps=4)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="cache is enabled"):
        vaccel.accelerate(pipe, vaccel.DualExpert(folder))
    tiny.latents(pipe, steps=4)
    pipe.transformer.disable_cache()
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        assert torch.equal(tiny.latents(pipe, steps=4), expected)


@pytest.mark.parametrize(("steps", "experts"), [(2, [0, 1]), (3, [0, 0, 1]), (5, [0, 0, 0, 1, 1])])
def test_numbers_of_steps(steps, experts, pipe, folder):
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder, steps=steps)) as handle:
        first = tiny.latents(pipe, steps=50)
        assert [step.action.expert for step in handle.trace.steps] == experts
        assert handle.trace.notes == [f"the pipeline was asked for 50 steps and the experts make {steps}"]
        assert torch.equal(tiny.latents(pipe, steps=steps), first)
        assert handle.trace.notes == []
        times = pipe.scheduler.trajectory.level(expert_times(steps, BOUNDARY)).timestep.float()
        assert torch.equal(pipe.scheduler.timesteps, times)


def test_cogvideox_with_its_other_scheduler(tmp_path):
    """Its pipeline calls that one's ``step`` with other arguments."""
    folder = make(tmp_path, "cogvideox")
    pipe = tiny.cog_pipeline(CogVideoXDPMScheduler(prediction_type="v_prediction"))
    x, expected = loop(pipe, folder, "cogvideox", ["a red cat runs"])
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        assert close(tiny.latents(pipe, latents=x, guidance=3.0), expected)
    assert isinstance(pipe.scheduler, CogVideoXDPMScheduler)


def test_a_run_from_the_middle_is_refused(folder):
    from diffusers import WanVideoToVideoPipeline
    from PIL import Image

    base = pipeline("wan")
    parts = {n: getattr(base, n) for n in ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")}
    pipe = WanVideoToVideoPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    call = {k: v for k, v in tiny.WAN_CALL.items() if k != "num_frames"}
    video = [Image.new("RGB", (32, 32), (10 * i, 0, 90)) for i in range(9)]
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)) as handle:
        with pytest.raises(ValueError, match=r"make 4 steps from pure noise, the run has 2"):
            pipe(video, "a red cat", num_inference_steps=4, strength=0.5, **call)
        pipe(video, "a red cat", num_inference_steps=4, strength=1.0, **call)
        assert handle.trace.timeline() == "eeee"


# -- offload, compile, graphs ------------------------------------------------------------------------------------------


def _whole(model):
    hf_accelerate.cpu_offload_with_hook(model, execution_device="cpu")


@pytest.mark.parametrize("first", ["offload", "accelerate"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_whole_models_are_offloaded(kind, first, tmp_path):
    folder, pipe = make(tmp_path, kind=kind), pipeline("wan")
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        expected = tiny.latents(pipe)
    plain, model = tiny.latents(pipe), pipe.transformer
    if first == "offload":
        _whole(model)
    handle = vaccel.accelerate(pipe, vaccel.DualExpert(folder))
    if first == "accelerate":
        _whole(model)
    for _ in range(2):
        assert torch.equal(tiny.latents(pipe), expected)
        hf_accelerate.hooks.remove_hook_from_module(model, recurse=True)  # as pipelines do after every run
        _whole(model)
    handle.remove()
    assert torch.equal(tiny.latents(pipe), plain)
    hf_accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert torch.equal(tiny.latents(pipe), plain)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_an_offloaded_transformer_is_fetched_for_either_expert(kind, tmp_path, monkeypatch):
    """On a GPU the detail expert's tensors were left on the host: the transformer comes to its device in the run."""
    folder, pipe = make(tmp_path, kind=kind), pipeline("wan")
    _whole(pipe.transformer)
    hook, order = pipe.transformer._hf_hook, []
    fetch = hook.pre_forward
    monkeypatch.setattr(hook, "pre_forward", lambda *args, **kwargs: order.append("fetched") or fetch(*args, **kwargs))
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)) as handle:
        detail = handle._session.experts.detail
        synchronize = detail.synchronize
        monkeypatch.setattr(detail, "synchronize", lambda: order.append("synchronised") or synchronize())
        tiny.latents(pipe)
    steps = "".join(word[0] for word in order)
    assert steps.startswith("sff"), "at the start of the run the transformer is still on the host"
    assert steps.endswith("fsfs"), "and is there once it was fetched"


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_detail_expert_follows_the_transformer(kind, tmp_path, monkeypatch):
    folder, pipe = make(tmp_path, kind=kind), pipeline("wan")
    handle = vaccel.accelerate(pipe, vaccel.DualExpert(folder))
    detail, base = handle._session.experts.detail, pipe.transformer
    # As a module's own move does it: its registers get other tensors.
    base.rope._buffers.update({name: buffer.clone() for name, buffer in base.rope.named_buffers()})
    block = base.blocks[0]
    block._parameters["scale_shift_table"] = torch.nn.Parameter(block.scale_shift_table.detach().clone())
    tiny.latents(pipe)
    assert all(t is base.rope._buffers[n] for n, t in detail.model.rope.named_buffers())
    assert (detail.model.blocks[0].scale_shift_table is block.scale_shift_table) == (kind == "lora")
    moves = []
    monkeypatch.setattr(detail, "move", moves.append)
    monkeypatch.setattr(detail, "_base", torch.nn.Linear(1, 1, device="meta"))
    detail.synchronize()
    assert moves == [torch.device("meta")]
    monkeypatch.undo()
    handle.remove()
    plain = MAKE["wan"](0).parameters()
    assert all(torch.equal(p, q) for p, q in zip(base.parameters(), plain, strict=True))


def test_weights_that_cannot_be_put_back_now_are_put_back_later(pipe, folder):
    plain = tiny.latents(pipe)
    handle = vaccel.accelerate(pipe, vaccel.DualExpert(folder))
    hf_accelerate.cpu_offload(pipe.transformer, execution_device="cpu")
    with pytest.raises(ValueError, match=r"cannot run any more: .*offloaded by layers"):
        tiny.latents(pipe)
    with pytest.raises(ValueError, match="take the offload off"):
        handle.remove()
    hf_accelerate.hooks.remove_hook_from_module(pipe.transformer, recurse=True)
    handle.remove()
    assert torch.equal(tiny.latents(pipe), plain)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_both_experts_are_captured_once(kind, tmp_path, rehearsal):
    folder, pipe = make(tmp_path, kind=kind, layers=1), pipeline("wan", layers=1)
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        eager = [tiny.latents(pipe, seed=seed) for seed in (0, 1)]
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder), cuda_graphs=True) as handle:
        for seed in (0, 1):
            assert torch.equal(tiny.latents(pipe, seed=seed), eager[seed])
        assert rehearsal.captured == 2
        assert rehearsal.replayed == 6, "all eight forwards but the first of each expert"
        assert handle.refused == []


@pytest.mark.parametrize(("name", "kind"), [("wan", "lora"), ("cogvideox", "full"), ("qwen-image", "lora")])
def test_both_experts_compile_as_one_graph_each(name, kind, tmp_path, counting):
    folder, pipe = make(tmp_path, name, kind=kind, layers=1), pipeline(name, layers=1)
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        eager = tiny.latents(pipe)
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder), compile=True):
        assert close(tiny.latents(pipe), eager)
    assert [c.frame_count for c in counting.counters] == [1, 1]


def test_attention_serves_both_experts(pipe, folder):
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        expected = tiny.latents(pipe)
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder), attention="sdpa") as handle:
        assert close(tiny.latents(pipe), expected)
        processors = [m.model.blocks[0].attn1.processor for m in handle._session.experts.models]
        assert processors[0] is processors[1]


@pytest.mark.gpu
def test_on_a_gpu(folder, parking):
    pipe = pipeline("wan")
    x, expected = loop(pipe, folder, "wan", ["a red cat runs"])
    method = vaccel.DualExpert(folder)
    pipe.to("cuda")
    before = kept(pipe)
    for arguments in ({"cuda_graphs": False}, {"cuda_graphs": True}):
        with vaccel.accelerate(pipe, method, **arguments) as handle:
            assert list(parking.iterdir()) == [], "the original weights wait in host memory"
            for _ in range(2):
                found = tiny.latents(pipe, latents=x.cuda()).cpu()
                assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
            assert handle.refused == []
            assert {p.device.type for p in handle._session.experts.detail.model.parameters()} == {"cuda"}
        assert_given_back(pipe, before)
    pipe = pipeline("wan")
    pipe.enable_model_cpu_offload()
    with vaccel.accelerate(pipe, method) as handle:
        for _ in range(2):
            found = tiny.latents(pipe, latents=x.cuda()).cpu()
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
            assert {p.device.type for p in handle._session.experts.detail.model.parameters()} == {"cpu"}
    plain = MAKE["wan"](0).parameters()
    assert all(torch.equal(p.cpu(), q) for p, q in zip(pipe.transformer.parameters(), plain, strict=True))
