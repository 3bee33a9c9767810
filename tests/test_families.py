"""Every described family, on a call as a real pipeline makes it: views are the model's own forward, blocks are spared.

The calls are those of the zoo's pipelines, recorded at their first step; the pipelines themselves are tested in
test_conformance.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from zoo import load_all
from zoo.base import generate
from zoo.check import accelerated

import vaccel
from vaccel.cache.block_residual import Kept
from vaccel.cache.block_states import BlockState
from vaccel.models import FAMILIES, find
from vaccel.models.structures import tensors_of
from vaccel.models.transformer import Transformer

CASES = load_all()


def cases_of_families() -> list[Any]:
    """One pipeline for every class of denoiser that a family describes, and its variants of pipelines named first."""
    found, seen = [], set()
    for name, case in CASES.items():
        kind = DENOISERS.get(name)
        if kind is None or (kind, case.modular) in seen or case.modular:
            continue
        seen.add((kind, case.modular))
        found.append(pytest.param(name, id=f"{kind}-{name}"))
    return found


def _described_class(case: Any) -> str | None:
    """The class of a case's first denoiser, where a family describes it; read off the pipeline's annotations."""
    import diffusers

    kind = getattr(diffusers, case.name.split("-")[0], None)
    if kind is None or case.modular:
        return None
    import inspect

    takes = inspect.signature(kind.__init__).parameters.get(case.denoisers[0])
    said = str(takes.annotation) if takes is not None else ""
    names = [n for family in FAMILIES.values() for n in family.transformers if n in said.replace("'", "")]
    return max(names, key=len) if names else None


DENOISERS = {name: _described_class(case) for name, case in CASES.items()}


class Caught(Exception):  # noqa: N818
    """The call that was waited for."""


def first_call(case: Any, pipe: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The denoiser and the arguments of its first call, by name."""
    module = getattr(pipe, case.denoisers[0])
    caught: dict[str, Any] = {}

    def catch(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        caught.update(find(module).bind(module, args, kwargs))
        raise Caught

    hook = module.register_forward_pre_hook(catch, with_kwargs=True)
    with contextlib.suppress(Caught):
        generate(case, pipe, 4)
    hook.remove()
    assert caught, "the denoiser was not called"
    return module, caught


@contextlib.contextmanager
def counted(blocks: list[nn.Module], calls: list[int]) -> Iterator[None]:
    """Within the context, the numbers of the blocks that are called are appended to ``calls``."""
    hooks = [b.register_forward_hook(lambda *_, n=n: calls.append(n)) for n, b in enumerate(blocks)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def kept_state(rows: int) -> BlockState:
    def make(hidden: torch.Tensor, encoder: torch.Tensor | None) -> tuple:
        return torch.empty_like(hidden), None if encoder is None else torch.empty_like(encoder), torch.zeros(rows)

    return BlockState(make, 0, rows)


@pytest.mark.parametrize("name", cases_of_families())
@torch.no_grad()
def test_views_are_the_models_own_forward(name):
    case = CASES[name]
    module, inputs = first_call(case, case.build())
    family = find(module)
    assert family.described, type(module).__name__
    model = Transformer(module, family)
    x = model.latents(inputs)
    plain = model.full(inputs)
    assert plain.shape == x.shape
    whole = tensors_of(model.layout.unpack(plain, model.layout.take_rest() or ()))[0]
    # What a family cuts off, its pipelines cut off too.
    assert torch.equal(whole, family.prediction(module, inputs, tensors_of(module(**inputs))[0]))
    blocks, calls = family.block_list(module), []
    assert model.depth == len(blocks) >= 2
    residual, states = Kept(), {n: kept_state(len(x)) for n in range(len(blocks))}
    with counted(blocks, calls):
        assert torch.equal(model.recording(inputs, residual, states), plain), "recording is not the forward"
    assert calls == list(range(len(blocks))), "the blocks do not run in the order that the family says"
    calls.clear()
    with counted(blocks, calls):
        again = model.reusing(inputs, residual.buffer)
    assert not calls, "a block was called where its residual stands in for it"
    # x + (y - x) is y but for rounding: that of the residual stack, carried through the head.
    scale = float(plain.abs().max())
    assert float((again - plain).abs().max()) <= 2e-4 * max(scale, 1e-3), "the residual is not what the blocks add"
    for after in range(len(blocks)):
        calls.clear()
        with counted(blocks, calls):
            resumed = model.resuming(inputs, after, {after: states[after]})
        assert torch.equal(resumed, plain), f"resumed after block {after} it is another"
        assert calls == list(range(after + 1, len(blocks)))


@pytest.mark.parametrize("name", cases_of_families())
def test_block_level_methods_run(name):
    case = CASES[name]
    pipe = case.build()
    plain = generate(case, pipe, 6)
    with accelerated(pipe, vaccel.MixCache(theta=10.0, d1=10.0, d2=20.0, levels=("block",))) as handle:
        found = generate(case, pipe, 6)
        timeline = "".join(trace.timeline() for trace in handle.traces)
    assert all(torch.isfinite(t).all() for t in found if t.is_floating_point())
    assert "b" in timeline, timeline
    again = generate(case, pipe, 6)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
