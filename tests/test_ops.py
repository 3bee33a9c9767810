"""Every op against its fp64 reference: error at most twice that of the plain formula in the working dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaccel import ops, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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


def within_twice(result, plain, truth, what: str) -> None:
    """Twice the plain formula's error, and never asked to beat the formula's own tail of four roundings of eps / 2."""
    rounding = truth.abs().max() * torch.finfo(result.dtype).eps * 2
    plainly = (plain.double() - truth).abs().max().nan_to_num(0.0, posinf=0.0)  # an overflow excuses nothing
    bound = torch.maximum(2 * plainly, rounding)
    assert (result.double() - truth).abs().max() <= bound, what


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_fp64(shape, dtype):
    a, b = tensors(2, shape, dtype)
    m = torch.rand(shape[0]) + 0.5
    within_twice(ops.norm(a), a.flatten(1).square().sum(1).sqrt(), reference.norm(a), "norm")
    within_twice(ops.cosine(a, b), plain_cosine(a, b), reference.cosine(a, b), "cosine")
    within_twice(ops.relative_l1(a, b), plain_relative_l1(a, b), reference.relative_l1(a, b), "relative_l1")
    truth = reference.cfg_combine(a, b, 5.0)
    within_twice(ops.cfg_combine(a, b, 5.0), b + 5.0 * (a - b), truth, "cfg_combine")
    out = torch.full_like(a, float("nan"))
    assert ops.residual_store(a, b, out) is out
    within_twice(out, a - b, reference.residual_store(a, b), "residual_store")
    truth = reference.direction_magnitude(a, b, m)
    impls = ("torch", "cpp") if ops.native() and dtype == torch.float32 else ("torch",)
    for impl in impls:
        result = ops.direction_magnitude(a, b, m, impl=impl)
        within_twice(result, plain_direction_magnitude(a, b, m), truth, f"direction_magnitude {impl}")
        assert torch.equal(result, ops.direction_magnitude(a, b, m, impl=impl)), "two runs differ"


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
    within_twice(ops.cosine(a, b), plain_cosine(a, b), reference.cosine(a, b), "cosine")


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
    assert ops.direction_magnitude(torch.empty(0, 4), torch.empty(0, 4), torch.empty(0)).shape == (0, 4)
    assert ops.direction_magnitude(torch.empty(2, 0), torch.empty(2, 0), torch.ones(2)).shape == (2, 0)
    assert ops.cosine(torch.empty(0, 4), torch.empty(0, 4)).shape == ops.norm(torch.empty(0)).shape == (0,)


def test_the_native_op_is_registered_properly():
    if not ops.native():
        assert "not built" in ops._native.DETAIL
        return
    x, r = tensors(2, (2, 4, 8), torch.float32)
    results = torch.library.opcheck(torch.ops.vaccel.direction_magnitude.default, (x, r, torch.ones(2)))
    assert set(results.values()) == {"SUCCESS"}


def test_thread_count_does_not_change_a_bit():
    x, r = tensors(2, (2, 300_001), torch.float32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(ops.direction_magnitude(x, r, torch.ones(2)))
    torch.set_num_threads(threads)
    if ops.native():
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


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
    with pytest.raises(ValueError, match="needs contiguous fp32"):
        ops.direction_magnitude(a.half(), a.half(), torch.ones(2), impl="cpp")
