"""Attention that quantises: tried on every model before it is used, refused where it is off, fails or is no number."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

import vaccel
from vaccel.engine import graphs
from vaccel.integrations.diffusers import attention
from vaccel.integrations.diffusers.attention_trial import relative_error
from vaccel.models.generic import Generic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import emulated_attention
from rehearsal import Rehearsal

SAGE = AttentionBackendName.SAGE
METHOD = vaccel.Schedule([0, 1, 4, 8, 11], num_steps=12)
SKETCH = vaccel.SRDiffusion(threshold=1.0, fix_steps=2)  # the small model later on


class Counted:
    """A backend that counts its calls and does what it is told."""

    def __init__(self, what="good"):
        self.what, self.calls = what, 0

    def __call__(self, query, key, value, attn_mask=None, is_causal=False, scale=None):
        self.calls += 1
        if self.what == "raises":
            raise RuntimeError(f"head size {query.shape[-1]} is not supported\nand more")
        bits = 8 if self.what == "good" else 2
        out = emulated_attention.attention(query, key, value, causal=is_causal, scale=scale, bits=bits)
        return out * float("nan") if self.what == "nan" else out * (1.0 if self.what == "good" else 3.0)


@pytest.fixture
def kernel(request):
    made = Counted(getattr(request, "param", "good"))
    before = dict(_AttentionBackendRegistry._backends)

    def sage(query, key, value, attn_mask=None, is_causal=False, scale=None):
        return made(query, key, value, attn_mask, is_causal, scale)

    with emulated_attention.standing_in(sage):
        yield made
    assert _AttentionBackendRegistry._backends == before


@pytest.fixture
def forwards(monkeypatch):
    """The models that were tried, a name for each forward beside the run's own."""
    seen, real = [], Generic.outright
    monkeypatch.setattr(Generic, "outright", lambda self, inputs: seen.append(self.is_small) or real(self, inputs))
    return seen


def used(model):
    return {p._attention_backend for p in attention._processors(model)}


def test_a_good_one_is_used_from_the_first_step_on(wan, kernel, forwards, recwarn):
    other = tiny.wan_transformer()
    plain = tiny.latents(wan)
    with vaccel.accelerate(wan, METHOD, attention="sageattention") as handle:
        assert used(wan.transformer) == {None}, "until it was tried"
        assert handle.attention == "sage"
        made = tiny.latents(wan)
        assert used(wan.transformer) == {SAGE}
        (note,) = [note for note in handle.trace.notes if "attention" in note]
        assert "sage on the transformer: relative error 0.0" in note
        assert "allowed 0.03 (measured by two forwards)" in note
        assert forwards == [False, False]
        assert handle.trace.calls["large"] == 10
        again = tiny.latents(wan)
        assert len(forwards) == 2, "once for all runs"
        assert "measured" not in str(handle.trace.notes)
        assert "sage on the transformer: relative error" in str(handle.trace.notes)
        assert torch.equal(made, again)
        assert not torch.equal(made, plain)
        assert used(other) == {None}
    assert used(wan.transformer) == {None}
    assert not [w for w in recwarn if "vaccel" in str(w.message)]
    assert torch.equal(tiny.latents(wan), plain)


@pytest.mark.parametrize(
    ("kernel", "why"),
    [("coarse", "relative error"), ("nan", "relative error nan"), ("raises", "it failed .head size 16 is not supp")],
    indirect=["kernel"],
)
@pytest.mark.parametrize("method", [METHOD, vaccel.MixCache(theta=0.3)], ids=["outputs", "inside"])
def test_a_bad_one_is_refused_and_the_run_is_the_exact_one(wan, kernel, why, method):
    full = tiny.latents(wan)
    with vaccel.accelerate(wan, method) as handle:
        plain, calls = tiny.latents(wan), handle.trace.calls
    with vaccel.accelerate(wan, method, attention="sageattention") as handle:
        with pytest.warns(UserWarning, match=f"vaccel: attention: sage refused on the transformer: {why}") as said:
            made = tiny.latents(wan)
        assert len([w for w in said if "attention" in str(w.message)]) == 1
        assert torch.equal(made, plain)
        assert handle.trace.calls == calls
        assert "it computes with exact attention" in str(handle.trace.notes)
        assert used(wan.transformer) == {None}
        assert handle.attention is None
        tried = kernel.calls
        assert torch.equal(tiny.latents(wan), plain)
        assert kernel.calls == tried, "never asked again"
    assert torch.equal(tiny.latents(wan), full)


def test_the_bound_is_the_users(wan, kernel):
    with vaccel.accelerate(wan, METHOD, attention=("sageattention", 1e-7)) as handle:
        with pytest.warns(UserWarning, match="allowed 1e-07"):
            tiny.latents(wan)
        assert handle.attention is None
    for wrong in (("sageattention", 0), ("sageattention", float("nan")), ("sageattention",), 3, ("sage", "much")):
        with pytest.raises(ValueError, match="attention must be a name, or"):
            vaccel.accelerate(wan, METHOD, attention=wrong)
    with pytest.raises(ValueError, match="flash2 is exact"):
        vaccel.accelerate(wan, METHOD, attention=("flash2", 0.1))
    vaccel.accelerate(wan, METHOD).remove()  # nothing is left of them


def test_exact_attention_is_what_was_set_before(wan, kernel):
    wan.transformer.set_attention_backend("_native_math")
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    kernel.what = "nan"
    with vaccel.accelerate(wan, METHOD, attention="sage"):
        with pytest.warns(UserWarning, match="refused"):
            tiny.latents(wan)
        assert used(wan.transformer) == {AttentionBackendName._NATIVE_MATH}
    wan.transformer.set_attention_backend("sage")  # which quantises: then torch's own
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    with vaccel.accelerate(wan, METHOD, attention="sage"):
        with pytest.warns(UserWarning, match="refused"):
            tiny.latents(wan)
        assert used(wan.transformer) == {AttentionBackendName.NATIVE}
    assert used(wan.transformer) == {SAGE}


def test_the_small_model_is_tried_at_its_own_first_step(wan, small, kernel, forwards):
    with vaccel.accelerate(wan, SKETCH, small=small, attention="sageattention") as handle:
        tiny.latents(wan)
        assert handle.trace.timeline() == "FFFFFFssssss"
        assert forwards == [False, False, True, True]
        assert used(small) == used(wan.transformer) == {SAGE}
        assert "on the small transformer: relative error" in str(handle.trace.notes)
        assert [v.label for v in handle._attention.verdicts] == ["transformer", "small transformer"]
    assert used(small) == {None}


def test_one_model_may_refuse_and_another_not(wan, small, kernel, monkeypatch):
    real = Counted.__call__

    def off_in_the_small_one(self, query, *rest):
        return real(self, query, *rest) * (5.0 if query.shape[2] == 1 else 1.0)  # which has one head

    monkeypatch.setattr(Counted, "__call__", off_in_the_small_one)
    with vaccel.accelerate(wan, SKETCH, small=small, attention="sageattention") as handle:
        with pytest.warns(UserWarning, match="refused on the small transformer"):
            tiny.latents(wan)
        assert (used(small), used(wan.transformer)) == ({None}, {SAGE})
        assert handle.attention == "sage"


def test_other_weights_are_tried_again(wan, kernel, forwards):
    with vaccel.accelerate(wan, METHOD, attention="sageattention") as handle:
        tiny.latents(wan)
        with torch.no_grad():
            wan.transformer.blocks[0].attn1.to_q.weight.mul_(1.5)
        kernel.what = "nan"
        with pytest.warns(UserWarning, match="refused"):
            made = tiny.latents(wan)
        assert len(forwards) == 4
        assert "relative error nan" in str(handle.trace.notes)
        assert str(handle.trace.notes).count("attention:") == 1, "nothing of the weights before"
    assert torch.equal(vaccel_free(wan), made)


def vaccel_free(pipe):
    with vaccel.accelerate(pipe, METHOD):
        return tiny.latents(pipe)


class Watched(Rehearsal):
    """A rehearsal that says whether it is recording."""

    def __init__(self):
        super().__init__()
        self.capturing = False

    def capture(self, function):
        def recorded():
            self.capturing = True
            try:
                return function()
            finally:
                self.capturing = False

        return super().capture(recorded)


@pytest.mark.parametrize("kernel", ["good", "nan"], indirect=True)
@pytest.mark.filterwarnings("ignore:vaccel. attention")
def test_captured_steps_are_tried_before_they_are_captured(wan, small, kernel, monkeypatch):
    backend, tried = Watched(), []
    monkeypatch.setattr(graphs, "backend", lambda: backend)
    real = Generic.outright
    monkeypatch.setattr(Generic, "outright", lambda self, inputs: tried.append(backend.capturing) or real(self, inputs))
    for method in (METHOD, SKETCH, vaccel.DirectionMagnitude(threshold=0.01)):
        given = {"small": small if method.needs_small else None, "attention": "sageattention"}
        with vaccel.accelerate(wan, method, **given) as handle:
            eager = [tiny.latents(wan), tiny.latents(wan)]
            notes = handle.trace.notes
        tried.clear()
        with vaccel.accelerate(wan, method, cuda_graphs=True, **given) as handle:
            captured = [tiny.latents(wan), tiny.latents(wan)]
            assert handle.refused == []
            assert [note for note in handle.trace.notes if "CUDA graphs" not in note] == notes
            assert backend.captured
        assert tried == [False] * (4 if method.needs_small else 2)
        assert all(torch.equal(a, b) for a, b in zip(eager, captured, strict=True))


def test_compiled_views(wan, forwards, monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda view, **options: compiled(view, **{**options, "backend": "eager"}))
    wan.transformer = tiny.wan_transformer(layers=2)
    with emulated_attention.standing_in(emulated_attention.backend()):
        with vaccel.accelerate(wan, METHOD, attention="sageattention"):
            eager = tiny.latents(wan)
        with vaccel.accelerate(wan, METHOD, attention="sageattention", compile=True) as handle:
            made = tiny.latents(wan)
            assert "sage on the transformer" in str(handle.trace.notes)
            assert used(wan.transformer) == {SAGE}
            assert len(forwards) == 4
    assert torch.allclose(made, eager, rtol=1e-3, atol=1e-4)


def test_the_random_stream_stays_where_it_was(wan, kernel):
    torch.manual_seed(3)
    with vaccel.accelerate(wan, METHOD, attention="sageattention"):
        tiny.latents(wan)
    after = torch.rand(())
    torch.manual_seed(3)
    tiny.latents(wan)
    assert torch.equal(after, torch.rand(()))


def test_the_worst_sample_counts():
    exact = torch.ones(2, 4), torch.tensor([3, 4])
    off = torch.ones(2, 4)
    off[1] = 1.5
    assert relative_error((off, exact[1]), exact) == pytest.approx(0.5)
    zero = (torch.zeros(1, 4),)
    assert relative_error(zero, zero) == 0.0
    assert relative_error((torch.ones(1, 4),), zero) == float("inf")


def test_which_quantise():
    names = {name.value for name in AttentionBackendName if attention.inexact(name.value)}
    assert names == {name.value for name in AttentionBackendName if "sage" in name.value}
