"""The attention backend: set on one pipeline's models, nothing leaks, all of it undone."""

from __future__ import annotations

import pytest
import tiny
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

import vaccel
from vaccel.integrations.diffusers import attention

METHOD = vaccel.Schedule([0, 1, 4, 8, 11], num_steps=12)


def backends(model):
    return [p._attention_backend for p in attention._processors(model)]


def test_it_is_used_and_undone(wan):
    other, active = tiny.wan_transformer(), _AttentionBackendRegistry._active_backend
    before = backends(wan.transformer)
    with vaccel.accelerate(wan, METHOD) as handle:
        plain = tiny.latents(wan)
        assert handle.attention is None
    with vaccel.accelerate(wan, METHOD, attention="_native_math") as handle:
        assert handle.attention == "_native_math"
        assert set(backends(wan.transformer)) == {AttentionBackendName._NATIVE_MATH}
        assert _AttentionBackendRegistry._active_backend == active, "no other model of the process is told"
        assert set(backends(other)) == {None}
        assert torch.allclose(tiny.latents(wan), plain, rtol=1e-4, atol=1e-5)
    assert backends(wan.transformer) == before
    assert _AttentionBackendRegistry._active_backend == active


def test_what_the_user_had_set_comes_back(wan):
    wan.transformer.set_attention_backend("_native_math")
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    with vaccel.accelerate(wan, METHOD, attention="sdpa"):
        assert set(backends(wan.transformer)) == {AttentionBackendName.NATIVE}
    assert set(backends(wan.transformer)) == {AttentionBackendName._NATIVE_MATH}


def test_the_small_model_is_told_too(wan, small):
    with vaccel.accelerate(wan, vaccel.DirectionMagnitude(), small=small, attention="auto") as handle:
        assert handle.attention == ("native" if not torch.cuda.is_available() else handle.attention)
        assert set(backends(small)) == {AttentionBackendName(handle.attention)}
    assert set(backends(small)) == {None}


@pytest.mark.parametrize(
    ("name", "match"),
    [("flashier", "must be one of"), ("sageattention", "install `sageattention"), ("flash3", "Flash Attention 3")],
)
def test_what_cannot_run_is_refused_and_leaves_nothing(wan, name, match):
    plain, active = tiny.latents(wan), _AttentionBackendRegistry._active_backend
    with pytest.raises(ValueError, match=match):
        vaccel.accelerate(wan, METHOD, attention=name)
    assert set(backends(wan.transformer)) == {None}
    assert _AttentionBackendRegistry._active_backend == active
    assert torch.equal(tiny.latents(wan), plain)
    vaccel.accelerate(wan, METHOD).remove()  # not accelerated by the attempt


def test_a_model_without_the_dispatcher():
    """CogVideoX calls torch's attention itself, as of diffusers 0.42."""
    pipe = tiny.cog_pipeline()
    with pytest.raises(ValueError, match="CogVideoXTransformer3DModel does not use diffusers' attention dispatcher"):
        vaccel.accelerate(pipe, METHOD, attention="sdpa")
    with vaccel.accelerate(pipe, METHOD, attention="auto") as handle:
        assert handle.attention is None


def test_auto_prefers_what_is_exact_and_installed(monkeypatch):
    installed = {"flash_attn"}
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: name in installed or None)
    for capability, expected in (((8, 0), "flash"), ((9, 0), "_native_cudnn"), ((7, 5), "native")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert attention.best(torch.device("cuda"), torch.bfloat16) == expected
    installed.add("flash_attn_interface")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert attention.best(torch.device("cuda"), torch.bfloat16) == "_flash_3"
    assert attention.best(torch.device("cuda"), torch.float32) == "native", "flash attention takes half precision only"
    assert attention.best(torch.device("cpu"), torch.bfloat16) == "native"
