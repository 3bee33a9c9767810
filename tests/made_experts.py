"""Experts for the tests: folders of tiny random ones, their run as a plain loop, what must be given back."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace

import oracle_models
import pytest
import tiny
import torch
from safetensors.torch import load_file

from vaccel.experts.files import save_experts
from vaccel.experts.trees import Adapter, adapted, own_parameters
from vaccel.planning.trajectory import Trajectory

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
    return save_experts(folder, MAKE[name](0, layers=layers), semantic=state, detail=detail, adapter=adapter, **given)


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


def parked(parking: Path) -> int:
    """How many files of original weights this process maps there; they have no names."""
    assert list(parking.iterdir()) == []
    return sum(f"{parking}/" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.fixture
def parking(tmp_path, monkeypatch) -> Path:
    """Where original weights are parked in this test."""
    path = tmp_path / "parking"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path
