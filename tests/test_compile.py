"""``compile=True``: every forward a method uses is one full graph, and the result is the uncompiled one."""

from __future__ import annotations

import functools

import pytest
import tiny
import torch
from torch._dynamo.testing import CompileCounter

import vaccel


class _Counting:
    """Stands in for ``torch.compile``: the same, with a backend that counts graphs and compiles nothing."""

    def __init__(self):
        self.compiled, self.counters = torch.compile, []

    def __call__(self, module, **options):
        self.counters.append(CompileCounter())
        return self.compiled(module, **{**options, "backend": self.counters[-1]})


@pytest.fixture
def counting(monkeypatch):
    torch._dynamo.reset()
    counting = _Counting()
    monkeypatch.setattr(torch, "compile", counting)
    yield counting
    torch._dynamo.reset()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.linalg.vector_norm(a - b) <= 1e-5 * torch.linalg.vector_norm(b))


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_no_graph_breaks(name, counting, skipping_methods):
    # Two blocks: one that is the first and one that is not.  The compiler follows each of them anew.
    pipe, small = tiny.family(name)
    if name == "wan":
        pipe.transformer = tiny.wan_transformer(layers=2)
    for method in skipping_methods:
        torch._dynamo.reset()
        counting.counters.clear()
        small_or_none = small if method.needs_small else None
        with vaccel.accelerate(pipe, method, small=small_or_none) as handle:
            eager, timeline = tiny.latents(pipe, steps=20), None
            timeline = handle.trace.timeline()
        with vaccel.accelerate(pipe, method, small=small_or_none, compile=True) as handle:
            compiled = tiny.latents(pipe, steps=20)
            assert handle.trace.timeline() == timeline
        assert close(compiled, eager), method
        assert counting.counters, "nothing was compiled"
        # fullgraph=True raises on a graph break; here: one graph a view, and no recompilation for the second branch.
        # (Batched guidance shows a model two batch sizes, all rows and the conditional half: the small one where it
        # rescales, the large one where MixCache leaves the other branch to the delta.)
        graphs = [c.frame_count for c in counting.counters]
        two_sizes = {"direction_magnitude": 1, "mixcache": 0} if name == "cogvideox" else {}
        expected = [2 if i == two_sizes.get(method.id) else 1 for i in range(len(graphs))]
        assert graphs == expected, method


def test_with_a_lora_and_with_blocks_compiled(wan, counting):
    from test_graphs import lora

    lora(wan)
    method = vaccel.Schedule([0, 1, 4, 8], num_steps=12)
    with vaccel.accelerate(wan, method):
        eager = tiny.latents(wan)
    with vaccel.accelerate(wan, method, compile=True):
        assert close(tiny.latents(wan), eager)
    assert all(c.frame_count == 1 for c in counting.counters)
    wan.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    with vaccel.accelerate(wan, method):
        assert close(tiny.latents(wan), eager)


def test_with_the_real_compiler():
    wan = tiny.wan_pipeline(transformer=tiny.wan_transformer(layers=1))
    method = vaccel.TeaCache(threshold=0.6, coefficients=(1.0, 0.0))
    with vaccel.accelerate(wan, method) as handle:
        eager, timeline = tiny.latents(wan), handle.trace.timeline()
    with vaccel.accelerate(wan, method, compile=True) as handle:
        assert close(tiny.latents(wan), eager)
        assert handle.trace.timeline() == timeline
        assert "r" in timeline


def test_a_module_compiled_in_place_stays_compiled(wan, counting):
    plain = tiny.latents(wan)
    module_compile = functools.partial(wan.transformer.compile, backend="eager")
    module_compile()
    handle = vaccel.accelerate(wan, vaccel.Schedule(range(12), num_steps=12))
    assert wan.transformer._compiled_call_impl is not None, "the user's own is left alone"
    assert close(tiny.latents(wan), plain)
    assert len(counting.counters) >= 1, "the accelerated forward is compiled too"
    handle.remove()
    assert wan.transformer._compiled_call_impl is not None


def test_a_wrapped_transformer_is_refused_with_the_way_out(wan):
    wan.transformer = torch.compile(wan.transformer)
    with pytest.raises(ValueError, match="compile=True"):
        vaccel.accelerate(wan, vaccel.Schedule([0], num_steps=12))


def test_ops_compile_as_one_graph():
    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def step(x, r, v, buffer):
        vaccel.ops.residual_store(v, x, buffer)
        out = vaccel.ops.direction_magnitude(x, r, vaccel.ops.norm(v))
        return vaccel.ops.cfg_combine(out, v, 5.0), vaccel.ops.cosine(out, v), vaccel.ops.relative_l1(out, v)

    x, r, v = torch.randn(3, 2, 4, 8)
    buffer = torch.empty_like(x)
    guided, cosine, distance = step(x, r, v, buffer)
    expected = vaccel.ops.direction_magnitude(x, r, vaccel.ops.norm(v))
    assert torch.allclose(guided, vaccel.ops.cfg_combine(expected, v, 5.0), rtol=1e-5, atol=1e-6)
    assert torch.equal(buffer, v - x)
    assert cosine.shape == distance.shape == (2,)
