"""Few-step sampling with two distilled experts: against a loop written here, and everything put back afterwards."""

from __future__ import annotations

import copy
import functools
import gc
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import accelerate as hf_accelerate
import oracle_models
import pytest
import test_graphs
import tiny
import torch
from diffusers import CogVideoXDPMScheduler
from diffusers.hooks import apply_group_offloading
from safetensors.torch import load_file, save_file
from test_compile import close, counting
from test_graphs import rehearsal

import vaccel
from vaccel import artifacts, expert_files, expert_weights
from vaccel.expert_files import read_experts, save_experts
from vaccel.experts import Adapter, adapted, own_parameters
from vaccel.integrations.sampler import ExpertScheduler
from vaccel.trajectory import Trajectory, expert_times

__all__ = ["counting", "rehearsal"]  # fixtures

FAMILIES = ("wan", "cogvideox", "qwen-image")
FRESH = {
    "wan": ("condition_embedder.time_embedder", "scale_shift_table", "proj_out"),
    "cogvideox": ("time_embedding", "norm_out", "proj_out"),
    "qwen-image": ("time_text_embed", "norm_out", "proj_out"),
}
MAKE = {
    "wan": functools.partial(tiny.wan_transformer, layers=2),
    "cogvideox": functools.partial(tiny.cog_transformer, layers=2),
    "qwen-image": functools.partial(tiny.qwen_transformer, layers=2),
}
BOUNDARY = 0.76
SHIFT = 17.0


def pipeline(name: str, **config):
    if name == "wan":
        return tiny.wan_pipeline(tiny.unipc(SHIFT), MAKE[name](0, **config))
    make_pipeline = tiny.cog_pipeline if name == "cogvideox" else tiny.qwen_pipeline
    return make_pipeline(transformer=MAKE[name](0, **config))


def path_of(name: str) -> Trajectory:
    return Trajectory.of(tiny.cog_pipeline().scheduler) if name == "cogvideox" else Trajectory(shift=SHIFT)


def make(folder, name: str = "wan", *, kind: str = "lora", semantic: bool = True, layers: int = 2, **options) -> Path:
    """Experts of a tiny transformer: weights of another seed, a LoRA and fresh layers that are not zero."""
    model = MAKE[name](5 if semantic else 0, layers=layers)
    adapter = Adapter(rank=4, alpha=8, fresh=FRESH[name]) if kind == "lora" else None
    detail = None
    if kind == "lora":
        detail = own_parameters(adapted(model, adapter), adapter)
        torch.manual_seed(6)
        detail = {k: p.detach() + 0.1 * torch.randn_like(p) for k, p in detail.items()}
    elif kind == "full":
        detail = MAKE[name](6, layers=layers).state_dict()
    given = {"trajectory": path_of(name), "boundary": BOUNDARY, "base": "tiny", **options}
    state = model.state_dict() if semantic else None
    return save_experts(folder, model, semantic=state, detail=detail, adapter=adapter, **given)


def by_hand(folder: Path, name: str) -> list[torch.nn.Module]:
    """The two experts as whole models, the LoRA added into the weights."""
    semantic = MAKE[name](0)
    if (folder / "semantic.safetensors").exists():
        semantic.load_state_dict(load_file(folder / "semantic.safetensors"))
    detail = copy.deepcopy(semantic)
    if not (folder / "detail.safetensors").exists():
        return [semantic, detail]
    saved, state = load_file(folder / "detail.safetensors"), detail.state_dict()
    for key, value in saved.items():
        if key.endswith(".lora_A.weight"):
            layer = key.removesuffix(".lora_A.weight")
            state[layer + ".weight"] += 2 * saved[layer + ".lora_B.weight"] @ value
        elif ".lora_" not in key:
            state[key].copy_(value)
    return [semantic, detail]


def conditioned(pipe, name: str, prompts: list[str]):
    """(x -> t -> model -> output) of the conditional branch, and initial latents."""
    generator = torch.Generator().manual_seed(11)
    task = SimpleNamespace(rotary=None, image=None)
    if name == "qwen-image":
        text = pipe.encode_prompt(prompts, max_sequence_length=16)
        image = (1, 32 // pipe.vae_scale_factor // 2, 48 // pipe.vae_scale_factor // 2)
        task.image, shape = image, (len(prompts), image[1] * image[2], 16)
    elif name == "cogvideox":
        text, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=16)
        side = 64 // pipe.vae_scale_factor_spatial
        shape = (len(prompts), 3, 4, side, side)
        task.rotary = pipe._prepare_rotary_positional_embeddings(64, 64, 3, torch.device("cpu"))
    else:
        text, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=8)
        shape = (len(prompts), 16, 3, 4, 4)
    x = torch.randn(shape, generator=generator)
    return x, lambda model, x, t: oracle_models.forward(model, task, x, t, text)


@torch.no_grad()
def loop(pipe, folder: Path, name: str, prompts: list[str], steps: int = 4):
    """Initial and final latents of the experts' sampling, written out for an even number of steps."""
    x, forward = conditioned(pipe, name, prompts)
    first, experts = x, by_hand(folder, name)
    half = steps // 2
    times = [1 - (1 - BOUNDARY) * j / half for j in range(half)] + [BOUNDARY * (1 - j / half) for j in range(half)]
    cumulative = pipe.scheduler.alphas_cumprod.double() if name == "cogvideox" else None
    for i, (now, then) in enumerate(zip(times, [*times[1:], 0.0], strict=True)):
        model = experts[0 if i < half else 1]
        if cumulative is None:
            s, end = (SHIFT * u / (1 + (SHIFT - 1) * u) for u in (now, then))
            x = x + (end - s) * forward(model, x, torch.tensor(1000 * s))
            continue
        index = [round(1000 * u) - 1 for u in (now, then)]
        a, s = cumulative[index[0]] ** 0.5, (1 - cumulative[index[0]]) ** 0.5
        left = cumulative[index[1]] if index[1] >= 0 else torch.ones(())
        v = forward(model, x, torch.tensor(float(index[0])))
        x = (left**0.5 * (a * x - s * v) + (1 - left) ** 0.5 * (s * x + a * v)).float()
    return first, x


def fingerprint(pipe) -> dict:
    """Everything of the pipeline and its transformer that has to be given back."""
    modules = dict(pipe.transformer.named_modules())
    return {
        "dict": {n: {k: id(v) for k, v in vars(m).items()} for n, m in modules.items()},
        "registers": {
            n: [{k: id(v) for k, v in vars(m)[r].items()} for r in ("_modules", "_parameters", "_buffers")]
            for n, m in modules.items()
        },
        "pointers": {n: p.data_ptr() for n, p in pipe.transformer.named_parameters()},
        "grads": {n: p.requires_grad for n, p in pipe.transformer.named_parameters()},
        "scheduler": id(pipe.scheduler),
        "config": dict(pipe.config),
        "keys": {k for k in vars(pipe) if not k.startswith("_")},  # a call leaves its own behind
    }


def kept(pipe) -> tuple[dict, dict]:
    tensors = {**dict(pipe.transformer.named_parameters()), **dict(pipe.transformer.named_buffers())}
    return fingerprint(pipe), {n: t.detach().clone() for n, t in tensors.items()}


def assert_given_back(pipe, before: tuple[dict, dict]) -> None:
    now, tensors = kept(pipe)
    assert now == before[0]
    assert tensors.keys() == before[1].keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[1][name]), name


@pytest.fixture
def folder(tmp_path) -> Path:
    return make(tmp_path / "experts")


@pytest.fixture
def pipe():
    return pipeline("wan")


@pytest.fixture
def parking(tmp_path, monkeypatch) -> Path:
    """Where original weights are parked in this test."""
    path = tmp_path / "parking"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


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


# -- what is put in place, and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_remove_gives_everything_back(name, tmp_path, parking):
    pipe, folder = pipeline(name), make(tmp_path / "experts", name)
    for i, p in enumerate(pipe.transformer.parameters()):
        p.requires_grad_(i % 2 == 0)
    plain, before, state = tiny.latents(pipe, steps=6), kept(pipe), torch.get_rng_state()
    for _ in range(2):
        handle = vaccel.accelerate(pipe, vaccel.DualExpert(folder))
        assert len(list(parking.rglob("*.safetensors"))) == 1
        first = tiny.latents(pipe, steps=4)
        assert torch.equal(tiny.latents(pipe, steps=4), first)
        during = fingerprint(pipe)
        assert {k: during[k] for k in ("pointers", "grads", "registers", "config")} == {
            k: before[0][k] for k in ("pointers", "grads", "registers", "config")
        }
        handle.remove()
        handle.remove()
        assert_given_back(pipe, before)
        assert list(parking.iterdir()) == []
        assert torch.equal(tiny.latents(pipe, steps=6), plain)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_aborted_run_leaves_nothing_behind(error, pipe, folder):
    def abort(pipe, i, t, kwargs):
        if i == 2:
            raise error("stop")
        return kwargs

    before = kept(pipe)
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)) as handle:
        expected = tiny.latents(pipe)
        with pytest.raises(error, match="stop"):
            tiny.latents(pipe, callback_on_step_end=abort)
        assert handle.trace.timeline() == "eee"
        assert torch.equal(tiny.latents(pipe), expected)
    with pytest.raises(error), vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        tiny.latents(pipe, callback_on_step_end=abort)
    assert_given_back(pipe, before)


@pytest.mark.parametrize("where", ["fill", "park", "merge", "attention"])
def test_a_failed_accelerate_leaves_nothing_behind(where, pipe, folder, monkeypatch, parking):
    before = kept(pipe)
    arguments = {}
    if where == "fill":
        fill = expert_files.WeightFile.fill

        def half(self, tensors):
            if self.path.name == "semantic.safetensors":
                fill(self, dict(list(tensors.items())[:9]))
                raise KeyboardInterrupt
            fill(self, tensors)

        monkeypatch.setattr(expert_files.WeightFile, "fill", half)
    elif where == "park":
        monkeypatch.setattr(expert_weights, "save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    elif where == "merge":
        monkeypatch.setattr(expert_weights, "merged", lambda tree: (_ for _ in ()).throw(MemoryError))
    else:
        arguments["attention"] = "no such kernel"
    with pytest.raises((KeyboardInterrupt, OSError, MemoryError, ValueError)):
        vaccel.accelerate(pipe, vaccel.DualExpert(folder, merged=True), **arguments)
    assert_given_back(pipe, before)
    assert list(parking.iterdir()) == []
    monkeypatch.undo()
    vaccel.accelerate(pipe, vaccel.DualExpert(folder)).remove()


def test_the_parked_file_goes_with_its_pipeline(pipe, folder, parking):
    vaccel.accelerate(pipe, vaccel.DualExpert(folder))
    tiny.latents(pipe)
    assert len(list(parking.rglob("*.safetensors"))) == 1
    del pipe
    gc.collect()
    # The fixture still holds the pipeline; a handle of one that nobody holds:
    other = pipeline("wan")
    vaccel.accelerate(other, vaccel.DualExpert(folder))
    assert len(list(parking.rglob("*.safetensors"))) == 2
    del other
    gc.collect()
    assert len(list(parking.rglob("*.safetensors"))) == 1


def test_no_weight_is_there_twice(pipe, folder):
    base = {p.untyped_storage().data_ptr() for p in pipe.transformer.parameters()}
    size = sum(p.nbytes for p in pipe.transformer.parameters())
    handle = vaccel.accelerate(pipe, vaccel.DualExpert(folder))
    models = handle._session.experts.models
    assert models[0].model is pipe.transformer
    found = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in models for p in m.model.parameters()}
    assert base <= found.keys()
    saved = load_file(folder / "detail.safetensors").values()
    assert sum(found.values()) - size == sum(t.nbytes for t in saved) == handle.expert_bytes["detail"]
    assert handle.expert_bytes["parked"] == size
    assert handle.memory_plan(height=32, width=32, num_frames=9) == {"total": 0}
    tiny.latents(pipe)
    assert handle.nbytes == 0
    assert not any(p.requires_grad for p in models[1].model.parameters() if p.untyped_storage().data_ptr() not in base)
    handle.remove()


def test_in_bfloat16(folder):
    pipe = pipeline("wan")
    pipe.transformer.to(torch.bfloat16)
    before = kept(pipe)
    x, expected = loop(pipeline("wan"), folder, "wan", ["a red cat runs"])
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)) as handle:
        assert {p.dtype for m in handle._session.experts.models for p in m.model.parameters()} == {torch.bfloat16}
        found = tiny.latents(pipe, latents=x)
        assert found.dtype == torch.float32
        assert torch.linalg.vector_norm(found - expected) < 0.05 * torch.linalg.vector_norm(expected)
    assert_given_back(pipe, before)


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(pipe, method, match: str) -> None:
    before = kept(pipe)
    with pytest.raises(ValueError, match=match):
        vaccel.accelerate(pipe, method)
    assert_given_back(pipe, before)


def test_another_base_is_refused(folder, tmp_path):
    method = vaccel.DualExpert(folder)
    other = tiny.wan_pipeline(transformer=tiny.wan_transformer(layers=3))
    refused(other, method, r"made from a WanTransformer3DModel \(configuration \w+\), tiny; the pipeline's")
    refused(tiny.cog_pipeline(), method, "the pipeline's transformer is a CogVideoXTransformer3DModel")
    two = tiny.wan_pipeline(transformer_2=tiny.wan_transformer(9), boundary_ratio=0.7)
    refused(two, method, "has transformer and transformer_2")


def test_damaged_folders_are_refused(pipe, folder, tmp_path):
    method, described = vaccel.DualExpert(folder), folder / "dual_expert.json"
    text = described.read_text()
    for damage, match in (
        (text[: len(text) // 2], "cut short"),
        (text.replace("0.76", "0.66"), "changed after"),
        (None, "has no dual_expert.json"),
    ):
        described.unlink()
        if damage is not None:
            described.write_text(damage)
            refused(pipe, method, match)
        else:
            refused(pipe, method, match)
            described.write_text(text)
    for name in ("semantic.safetensors", "detail.safetensors"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        refused(pipe, method, "cut short")
        save_file({**load_file_bytes(whole), "one.more": torch.zeros(1)}, path)
        refused(pipe, method, r"one\.more")
        save_file({k: t.repeat(2) if t.ndim == 1 else t for k, t in load_file_bytes(whole).items()}, path)
        refused(pipe, method, r"is \[")
        path.unlink()
        refused(pipe, method, f"has no {name}")
        path.write_bytes(whole)
    vaccel.accelerate(pipe, method).remove()


def load_file_bytes(content: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(content)


def test_a_name_on_the_hub(pipe, folder, monkeypatch):
    import huggingface_hub

    asked = []

    def found(name, **options):
        asked.append(name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    vaccel.accelerate(pipe, vaccel.DualExpert("someone/experts")).remove()
    assert asked == ["someone/experts"]

    def offline(name, **options):
        raise ConnectionError("no network here\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused(pipe, vaccel.DualExpert("someone/experts"), "no folder someone/experts, .*: no network here")


def test_weights_that_cannot_be_replaced_are_refused(folder):
    method = vaccel.DualExpert(folder)
    pipe = pipeline("wan")
    test_graphs.lora(pipe)
    refused(pipe, method, "has a LoRA")
    pipe = pipeline("wan")
    hf_accelerate.cpu_offload(pipe.transformer, execution_device="cpu")
    with pytest.raises(ValueError, match="offloaded by layers"):
        vaccel.accelerate(pipe, method)
    pipe = pipeline("wan")
    _groups(pipe.transformer)
    with pytest.raises(ValueError, match="carries hooks"):
        vaccel.accelerate(pipe, method)
    for dtype in (torch.float8_e4m3fn, torch.int8):
        pipe = pipeline("wan")
        weight = pipe.transformer.blocks[0].ffn.net[2].weight
        pipe.transformer.blocks[0].ffn.net[2].weight = torch.nn.Parameter(weight.data.to(dtype), requires_grad=False)
        refused(pipe, method, "is quantised")
    pipe = pipeline("wan")
    pipe.transformer.proj_out.to("meta")
    with pytest.raises(ValueError, match="meta device"):
        vaccel.accelerate(pipe, method)
    pipe = pipeline("wan")
    pipe.transformer.blocks[1].forward = lambda *args, **kwargs: args[0]
    refused(pipe, method, r"forward of its blocks\.1 was replaced")


def _groups(model):
    cpu = torch.device("cpu")
    apply_group_offloading(
        model, onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )


def test_what_comes_upon_the_transformer_later_is_refused_at_the_next_run(pipe, folder):
    before = kept(pipe)
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        tiny.latents(pipe)
        own, pipe.scheduler = pipe.scheduler, tiny.unipc()
        with pytest.raises(ValueError, match="scheduler was replaced"):
            tiny.latents(pipe, steps=4)
        object.__setattr__(pipe, "scheduler", own)
        test_graphs.lora(pipe)
        with pytest.raises(ValueError, match=r"cannot run any more: .*LoRA"):
            tiny.latents(pipe)
    weights = {n.replace(".base_layer.", "."): p for n, p in pipe.transformer.named_parameters()}
    assert all(torch.equal(weights[n], t) for n, t in before[1].items() if n in weights)


def test_no_pipeline_no_weights(folder, small):
    wan = pipeline("wan")
    with pytest.raises(ValueError, match="needs a pipeline"):
        vaccel.Denoiser(wan.transformer, method=vaccel.DualExpert(folder))
    with vaccel.accelerate(wan, vaccel.DualExpert(folder)) as handle:
        tiny.latents(wan)
        with pytest.raises(ValueError, match="accelerated already"):
            vaccel.accelerate(wan, vaccel.DualExpert(folder))
        schedule = handle.trace.as_schedule()
    assert schedule.timeline == "eeee"
    assert vaccel.method_from_json(schedule.to_json()) == schedule
    for replayed in (schedule, vaccel.Schedule.from_timeline("eeee")):
        refused(wan, replayed, "whose weights no schedule has")
        with pytest.raises(ValueError, match="whose weights no schedule has"):
            vaccel.Denoiser(wan.transformer, method=replayed)
    with pytest.warns(UserWarning, match="ignored"):
        vaccel.accelerate(wan, vaccel.DualExpert(folder), small=small).remove()


# -- saving ------------------------------------------------------------------------------------------------------------


def test_loaded_is_the_folder():
    assert vaccel.DualExpert.load(Path("some") / "folder", steps=6) == vaccel.DualExpert("some/folder", steps=6)


def test_files_are_readable_as_any_other(tmp_path):
    before = os.umask(0o027)
    try:
        folder = make(tmp_path)
    finally:
        os.umask(before)
    assert {oct(p.stat().st_mode & 0o777) for p in folder.iterdir()} == {"0o640"}


def test_tensors_that_share_memory_are_saved_as_they_are(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"whole": whole, "turned": whole.T, "row": whole[1]}
    (tmp_path / "t.safetensors.partial").write_text("left behind")
    artifacts.save_tensors(tmp_path / "t.safetensors", tensors, {"step": "3"})
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
    assert all(torch.equal(t, tensors[k]) for k, t in load_file(tmp_path / "t.safetensors").items())


def test_an_interrupted_save_leaves_no_half(tmp_path, monkeypatch):
    folder = make(tmp_path)
    saved = read_experts(folder)
    assert (saved.base, saved.kind, saved.semantic, saved.boundary) == ("tiny", "lora", True, BOUNDARY)
    assert saved.adapter == Adapter(rank=4, alpha=8, fresh=FRESH["wan"])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert set(before) == {"dual_expert.json", "semantic.safetensors", "detail.safetensors"}

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(expert_files.artifacts, "save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            make(tmp_path, kind="full")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with monkeypatch.context() as patch:
        patch.setattr(expert_files.artifacts, "write", fail)
        with pytest.raises(OSError, match="disk full"):
            make(tmp_path, kind="full")
    with pytest.raises(ValueError, match=r"has no dual_expert\.json"):
        read_experts(folder)
    make(tmp_path, kind="none", semantic=False)
    assert [p.name for p in folder.iterdir()] == ["dual_expert.json"]


def test_saving_refuses_what_could_not_be_run(tmp_path, wan):
    given = {"trajectory": Trajectory(), "boundary": 0.5}
    with pytest.raises(ValueError, match="between 0 and 1"):
        save_experts(tmp_path, wan.transformer, **{**given, "boundary": 1.0})
    with pytest.raises(ValueError, match="no parameters of it"):
        save_experts(tmp_path, wan.transformer, adapter=Adapter(), **given)
    tied = torch.zeros(2, 3)
    save_experts(tmp_path, wan.transformer, semantic={"a": tied, "b": tied.t()}, **given)
    assert load_file(tmp_path / "semantic.safetensors")["b"].shape == (3, 2)


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
    detail.follow()
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
        assert rehearsal.replayed == 8
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
    for arguments in ({}, {"cuda_graphs": True}):
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
