"""Every op against its fp64 reference: error at most twice that of the plain formula in the working dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaccel import ops, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IMPLS = ("torch", "cpp") if ops.native() else ("torch",)
SHAPES = ((1, 1), (1, 16, 21, 60, 104), (2, 64, 5, 6, 6), (3, 7), (4, 5, 33), (2, 4096), (2, 4097), (2, 65537))


def tensors(count: int, shape, dtype, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def plain_direction_magnitude(x, r, m):
    """The formula as one would type it, every operation in x's dtype."""
    d = x + r
    length = d.flatten(1).square().sum(dim=1, dtype=x.dtype).sqrt()
    return d * (m.to(x.dtype) / length).view(-1, *[1] * (x.ndim - 1))


def plain_cosine(a, b):
    a, b = a.flatten(1), b.flatten(1)
    return (a * b).sum(1) / (a.square().sum(1).sqrt() * b.square().sum(1).sqrt())


def plain_relative_l1(a, b):
    a, b = a.flatten(1), b.flatten(1)
    return (a - b).abs().sum(1) / b.abs().sum(1)


def within_twice(result, plain, truth, what: str, scale: torch.Tensor | None = None) -> None:
    """Twice the plain formula's error, and never asked to beat the formula's own tail of four roundings of eps / 2.

    ``scale`` is what those roundings are relative to, where terms cancel: the sum of the terms' magnitudes.
    """
    rounding = (truth if scale is None else scale).abs().max() * torch.finfo(result.dtype).eps * 2
    plainly = (plain.double() - truth).abs().max().nan_to_num(0.0, posinf=0.0)  # an overflow excuses nothing
    bound = torch.maximum(2 * plainly, rounding)
    assert (result.double() - truth).abs().max() <= bound, what


def plain_cfg_combine(c, u):
    return u + 5.0 * (c - u)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_fp64(shape, dtype, impl):
    a, b = tensors(2, shape, dtype)
    m = torch.rand(shape[0]) + 0.5
    cases = {
        "norm": (lambda: ops.norm(a, impl=impl), a.flatten(1).square().sum(1).sqrt(), reference.norm(a)),
        "cosine": (lambda: ops.cosine(a, b, impl=impl), plain_cosine(a, b), reference.cosine(a, b)),
        "relative_l1": (lambda: ops.relative_l1(a, b, impl=impl), plain_relative_l1(a, b), reference.relative_l1(a, b)),
        "cfg_combine": (
            lambda: ops.cfg_combine(a, b, 5.0, torch.full_like(a, float("nan")), impl=impl),
            plain_cfg_combine(a, b),
            reference.cfg_combine(a, b, 5.0),
        ),
        "residual_store": (
            lambda: ops.residual_store(a, b, torch.full_like(a, float("nan"))),
            a - b,
            reference.residual_store(a, b),
        ),
        "direction_magnitude": (
            lambda: ops.direction_magnitude(a, b, m, impl=impl),
            plain_direction_magnitude(a, b, m),
            reference.direction_magnitude(a, b, m),
        ),
    }
    for name, (run, plain, truth) in cases.items():
        result = run()
        terms = reference.cosine(a.abs(), b.abs()) if name == "cosine" else None
        within_twice(result, plain, truth, f"{name} {impl}", terms)
        assert torch.equal(result, run()), f"{name} {impl}: two runs differ"


@pytest.mark.skipif(not ops.native(), reason="no compiled kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_kernels_read_and_round_every_half_as_torch_does(dtype):
    """All 65536 bit patterns in, u + 1 (c - u) with u = 0 out: subnormal numbers, infinities, NaN and ties included."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(4, -1)
    zero = torch.zeros_like(every)
    result = ops.cfg_combine(every, zero, 1.0, impl="cpp")
    assert torch.equal(result.isnan(), every.isnan())
    assert torch.equal(result.nan_to_num(), every.nan_to_num())
    between = torch.rand(2**14, generator=torch.Generator().manual_seed(0)).mul(40).sub(30).exp2()
    scale = float(torch.rand((), generator=torch.Generator().manual_seed(1))) + 1
    c = between.to(dtype)[None]
    expected = (c.float() * scale).to(dtype)
    assert torch.equal(ops.cfg_combine(c, torch.zeros_like(c), scale, impl="cpp"), expected)


@pytest.mark.skipif(not ops.native(), reason="no compiled kernels")
def test_guidance_is_the_pipelines_bit_for_bit():
    cond, uncond = tensors(2, (2, 16, 5, 8, 8), torch.float32)
    for impl in IMPLS:
        assert torch.equal(ops.cfg_combine(cond, uncond, 5.3, impl=impl), uncond + 5.3 * (cond - uncond))


@pytest.mark.skipif(not ops.native(), reason="no compiled kernels")
def test_the_number_of_threads_changes_no_bit():
    a, b = tensors(2, (2, 16, 21, 60, 104), torch.float32)
    calls = (
        lambda: ops.norm(a, impl="cpp"),
        lambda: ops.cosine(a, b, impl="cpp"),
        lambda: ops.relative_l1(a, b, impl="cpp"),
        lambda: ops.direction_magnitude(a, b, torch.ones(2), impl="cpp"),
    )
    several, threads = [call() for call in calls], torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert all(torch.equal(call(), before) for call, before in zip(calls, several, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_a_tensor_that_needs_gradients_keeps_them():
    a, b = tensors(2, (2, 30), torch.float32)
    a.requires_grad_()
    ops.cosine(a, b).sum().backward()
    assert a.grad.abs().sum() > 0
    if ops.native():
        with pytest.raises(ValueError, match="no gradients"):
            ops.cosine(a, b, impl="cpp")


def test_the_length_is_what_was_asked_for():
    x, r = tensors(2, (3, 16, 4, 4), torch.float32)
    m = torch.tensor([0.5, 1.0, 7.0])
    assert torch.allclose(ops.norm(ops.direction_magnitude(x, r, m)), m, rtol=1e-6)
    assert torch.allclose(ops.cosine(ops.direction_magnitude(x, r, m), x + r), torch.ones(3), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99), st.booleans())
def test_any_shape_and_stride(batch, dims, seed, transposed):
    a, b = tensors(2, (batch, *dims), torch.float32, seed)
    if transposed and a.ndim > 2:
        a, b = a.transpose(1, -1), b.transpose(1, -1)
    m = torch.rand(batch) + 0.5
    truth = reference.direction_magnitude(a, b, m)
    result = ops.direction_magnitude(a, b, m)
    assert result.shape == a.shape
    within_twice(result, plain_direction_magnitude(a, b, m), truth, "direction_magnitude")
    terms = reference.cosine(a.abs(), b.abs())
    within_twice(ops.cosine(a, b), plain_cosine(a, b), reference.cosine(a, b), "cosine", terms)


def test_each_sample_is_its_own():
    a, b = tensors(2, (4, 8, 6), torch.float32)
    for op in (ops.cosine, ops.relative_l1):
        assert torch.allclose(op(a, b), torch.cat([op(a[i : i + 1], b[i : i + 1]) for i in range(4)]), rtol=1e-6)
    one = ops.direction_magnitude(a[:1], b[:1], torch.ones(1))
    assert torch.equal(ops.direction_magnitude(a, b, torch.ones(4))[:1], one)


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_nan_inf_empty_and_zero(impl):
    if impl == "cpp" and not ops.native():
        impl = "torch"
    x, r = tensors(2, (3, 50), torch.float32)
    x[0, 3] = float("nan")
    x[1, 3] = float("inf")
    r[2] = -x[2]
    result = ops.direction_magnitude(x, r, torch.ones(3), impl=impl)
    truth = reference.direction_magnitude(x, r, torch.ones(3))
    assert torch.equal(result.isnan(), truth.isnan())
    assert ops.norm(x, impl=impl).tolist()[1] == float("inf")
    for op in (ops.norm, lambda x, impl: ops.cosine(x, r, impl=impl), lambda x, impl: ops.relative_l1(x, r, impl=impl)):
        assert op(x, impl=impl)[0].isnan()
    assert ops.cosine(x[2:], torch.zeros(1, 50), impl=impl).isnan().all()
    assert ops.direction_magnitude(torch.empty(0, 4), torch.empty(0, 4), torch.empty(0)).shape == (0, 4)
    assert ops.direction_magnitude(torch.empty(2, 0), torch.empty(2, 0), torch.ones(2)).shape == (2, 0)
    assert ops.cosine(torch.empty(0, 4), torch.empty(0, 4)).shape == ops.norm(torch.empty(0)).shape == (0,)


@pytest.mark.parametrize("op", ["norm", "cosine", "relative_l1", "cfg_combine", "direction_magnitude"])
def test_the_compiled_ops_are_registered_properly(op):
    if not ops.native():
        assert "not built" in ops._native.DETAIL
        return
    x, r = tensors(2, (2, 4, 8), torch.bfloat16)
    arguments = {"norm": (x,), "cfg_combine": (x, r, 3.0, torch.empty_like(x))}
    arguments["direction_magnitude"] = (x, r, torch.ones(2))
    registered = getattr(torch.ops.vaccel, op).default
    results = torch.library.opcheck(registered, arguments.get(op, (x, r)))
    assert set(results.values()) == {"SUCCESS"}


def test_the_public_functions_compile_as_one_graph():
    def step(x, r, u):
        m = ops.norm(x) * ops.cosine(x, r) + ops.relative_l1(x, r)
        return ops.cfg_combine(ops.direction_magnitude(x, r, m), u, 2.0)

    x, r, u = tensors(3, (2, 4, 8), torch.float32)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, r, u), step(x, r, u))


def test_errors_name_the_op_and_the_shapes():
    a, b = torch.ones(2, 3), torch.ones(2, 4)
    for op in (ops.cosine, ops.relative_l1):
        with pytest.raises(ValueError, match=rf"{op.__name__}: .*\(2, 3\).*\(2, 4\)"):
            op(a, b)
    with pytest.raises(ValueError, match="differ in shape"):
        ops.cfg_combine(a, b, 1.0)
    with pytest.raises(ValueError, match="needs a batch dimension"):
        ops.norm(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"magnitude must be \[2\]"):
        ops.direction_magnitude(a, a, torch.ones(3))
    with pytest.raises(ValueError, match="unknown impl 'cuda9'"):
        ops.direction_magnitude(a, a, torch.ones(2), impl="cuda9")
    with pytest.raises(ValueError, match="needs one of fp32, fp16, bf16"):
        ops.direction_magnitude(a.double(), a.double(), torch.ones(2), impl="cpp")
    with pytest.raises(ValueError, match="unknown impl"):
        ops.norm(a, impl="")
    # Asked for and unable: said, never computed by something else.
    with pytest.raises(ValueError, match="outputs contiguous"):
        ops.cfg_combine(a, a, 1.0, torch.empty(3, 2).T, impl="cpp")
    with pytest.raises(ValueError, match="magnitudes in fp32"):
        ops.direction_magnitude(a, a, torch.ones(2).double(), impl="cpp")
