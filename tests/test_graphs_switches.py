"""What a user switches between runs (adapters, their scales, attention) is in the next run's latents: what a captured
step has fixed is captured anew, and what it reads where it lies it sees by itself."""

from __future__ import annotations

import pytest
import tiny
import torch
from rehearsal import Rehearsal
from test_graphs import lora

import vaccel
from vaccel.engine import graphs

ALL = vaccel.Schedule(range(6), num_steps=6)


@pytest.fixture
def rehearsal(monkeypatch):
    backend = Rehearsal()
    monkeypatch.setattr(graphs, "backend", lambda: backend)
    return backend


def adapters(pipe):
    return {n: p for n, p in pipe.transformer.named_parameters() if "lora_" in n}


def write_in_place(pipe):
    with torch.no_grad():
        for parameter in adapters(pipe).values():
            parameter.copy_(torch.randn_like(parameter))


def put_elsewhere(pipe):
    for parameter in adapters(pipe).values():
        parameter.data = torch.randn_like(parameter)


def hotswap(pipe):
    """As diffusers swaps an adapter in: weights copied where they fit, scales set."""
    from peft import LoraConfig
    from peft.utils.hotswap import hotswap_adapter_from_state_dict

    state = {n: torch.randn_like(p) for n, p in adapters(pipe).items()}
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_k"])
    hotswap_adapter_from_state_dict(pipe.transformer, state, "default", config)


def scales_as_tensors(pipe):
    """As peft has them where adapters are to be swapped without compiling anew."""
    for module in pipe.transformer.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] = torch.tensor(1.00001 * module.scaling["default"])


def another_adapter(pipe):
    from peft import LoraConfig

    pipe.transformer.add_adapter(
        LoraConfig(r=2, target_modules=["to_v"], init_lora_weights=False), adapter_name="second"
    )


def both_adapters(pipe):
    another_adapter(pipe)
    pipe.transformer.set_adapters(["default", "second"], [0.5, 2.0])


class Twice:
    """A processor of the user's own: attention as it was, counted twice."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, *args, **kwargs):
        return 2 * self.processor(*args, **kwargs)


def another_processor(pipe):
    for block in pipe.transformer.blocks:
        block.attn1.processor = Twice(block.attn1.processor)


def a_buffer(pipe):
    """What the model keeps of frequencies, put elsewhere."""
    (name, buffer), *_ = [
        (n, b) for n, b in pipe.transformer.named_buffers() if b.is_floating_point() and b.numel() > 1
    ]
    module = pipe.transformer.get_submodule(name.rpartition(".")[0])
    module._buffers[name.rpartition(".")[2]] = buffer * 0.5


SWITCHES = {
    "in place": (write_in_place, False),
    "elsewhere": (put_elsewhere, True),
    "hotswap": (hotswap, True),
    "scale": (lambda pipe: pipe.transformer.set_adapters(["default"], [0.25]), True),
    "scales as tensors": (scales_as_tensors, True),
    "off": (lambda pipe: pipe.transformer.disable_adapters(), True),
    "merged": (lambda pipe: pipe.transformer.fuse_lora(), True),
    "another adapter": (another_adapter, True),
    "two adapters": (both_adapters, True),
    "processor": (another_processor, True),
    "buffer": (a_buffer, True),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_what_is_switched_between_runs_is_in_the_next_one(name, rehearsal):
    switch, anew = SWITCHES[name]

    def two_runs(**options):
        pipe = tiny.wan_pipeline()
        lora(pipe)
        with vaccel.accelerate(pipe, ALL, **options) as handle:
            first, captured = tiny.latents(pipe, steps=6), rehearsal.captured
            torch.manual_seed(7)
            switch(pipe)
            latents = first, tiny.latents(pipe, steps=6), tiny.latents(pipe, steps=6)
            assert handle.refused == []
            return latents, captured

    eager, none = two_runs(cuda_graphs=False)
    assert none == 0
    found, captured = two_runs(cuda_graphs=True)
    assert all(torch.equal(a, b) for a, b in zip(found, eager, strict=True))
    assert not torch.equal(eager[0], eager[1]), "a switch that changes nothing shows nothing"
    assert captured == 2
    assert rehearsal.captured == (4 if anew else 2)


def set_backend(pipe):
    """As the user does, who also switches the setting of the process."""
    pipe.transformer.set_attention_backend("_native_math")


def set_on_processors(pipe):
    for block in pipe.transformer.blocks:
        block.attn1.processor._attention_backend = "_native_math"


def set_for_the_process(pipe):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    _AttentionBackendRegistry.set_active_backend("_native_math")


def set_in_torch(pipe):
    torch.backends.cuda.enable_flash_sdp(False)


@pytest.fixture
def settings():
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    active, flash = _AttentionBackendRegistry._active_backend, torch.backends.cuda.flash_sdp_enabled()
    yield
    _AttentionBackendRegistry._active_backend = active
    torch.backends.cuda.enable_flash_sdp(flash)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("switch", [set_backend, set_on_processors, set_for_the_process, set_in_torch])
def test_another_attention_is_captured(switch, rehearsal):
    plain, pipe = tiny.wan_pipeline(), tiny.wan_pipeline()
    with vaccel.accelerate(pipe, ALL, cuda_graphs=True) as handle:
        assert torch.equal(tiny.latents(pipe, steps=6), tiny.latents(plain, steps=6))
        assert rehearsal.captured == 2
        for each in (pipe, plain):
            switch(each)
        for _ in range(2):
            assert torch.equal(tiny.latents(pipe, steps=6), tiny.latents(plain, steps=6))
        assert rehearsal.captured == 4
        assert handle.refused == []


def test_nothing_switched_captures_nothing(rehearsal):
    pipe = tiny.wan_pipeline()
    lora(pipe)
    with vaccel.accelerate(pipe, ALL, cuda_graphs=True):
        for _ in range(3):
            tiny.latents(pipe, steps=6)
            pipe.transformer.set_adapters(["default"], [1.0])
    assert rehearsal.captured == 2


def test_quantised_weights_are_told_apart_by_what_they_are_made_of():
    from torch.testing._internal.two_tensor import TwoTensor

    from vaccel.models.standing import standing

    model = torch.nn.Linear(2, 2, bias=False)
    model.weight = torch.nn.Parameter(TwoTensor(torch.zeros(2, 2), torch.zeros(2, 2)), requires_grad=False)
    before = standing(model)
    assert standing(model) == before
    model.weight.b = torch.ones(2, 2)
    assert standing(model) != before
    model.train(not model.training)
    assert standing(model)[0] != before[0]
