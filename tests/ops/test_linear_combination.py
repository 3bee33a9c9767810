"""linear_combination(x, a) = sum over k of a[k] x[k], a by sample and channel; guided: of both branches, and theirs."""

import functools

import harness
import pytest
import torch
from pairs import pairs

from vaccel import ops

COUNT = 3  # tensors of each branch: two cached outputs and the latents


def factors(inputs, channel_dim=1, count=COUNT):
    """[B, n, C], or [B, n, 1] for tensors of two dimensions or fewer: samples first, as the tests cut them."""
    x, generator = inputs[0], torch.Generator().manual_seed(5)
    channels = x.shape[channel_dim] if x.ndim > 2 else 1
    return torch.randn(len(x), count, channels, generator=generator).to(x.device)


def shaped(factor, x, channel_dim=1):
    """[B, C] so that it can be multiplied by x."""
    shape = [len(factor), *[1] * (x.ndim - 1)]
    if x.ndim > 1:
        shape[channel_dim] = factor.shape[1]
    return factor.reshape(shape)


def plain(*args, channel_dim=1):
    *tensors, by_sample = args
    products = [shaped(by_sample[:, k], x, channel_dim).to(x.dtype) * x for k, x in enumerate(tensors)]
    return sum(products[1:], products[0])


def terms(*args, channel_dim=1):
    return plain(*(t.double().abs() for t in args), channel_dim=channel_dim)


def plain_guided(*args):
    *tensors, by_sample, scale = args
    c, u = plain(*tensors[:COUNT], by_sample), plain(*tensors[COUNT:], by_sample)
    return u + scale * (c - u)


def guided_terms(*args):
    """As those of direction_magnitude_guided: what is rounded in each branch comes w times into their sum."""
    *tensors, by_sample, scale = args
    c, u = terms(*tensors[:COUNT], by_sample), terms(*tensors[COUNT:], by_sample)
    return u + abs(scale) * (c + u)


def case(channel_dim):
    by_name = {"channel_dim": channel_dim}
    return harness.Case(
        "linear_combination",
        COUNT,
        functools.partial(plain, **by_name),
        lambda inputs: (factors(inputs, channel_dim),),
        functools.partial(terms, **by_name),
        writes=True,
        differentiable=True,
        grouped=lambda args: (list(args[:COUNT]), args[COUNT].transpose(0, 1)),
        options=by_name,
    )


CASE, PACKED = case(1), case(-1)
GUIDED = harness.Case(
    "linear_combination_guided",
    2 * COUNT,
    plain_guided,
    lambda inputs: (factors(inputs), 5.0),
    guided_terms,
    writes=True,
    differentiable=True,
    grouped=lambda args: (list(args[:COUNT]), list(args[COUNT:-2]), args[-2].transpose(0, 1), args[-1]),
)

globals().update(harness.tests(CASE))
globals().update({f"{name}_packed": test for name, test in harness.tests(PACKED).items()})
globals().update(harness.tests(GUIDED))

#: Rows of every length that kernels tell apart, about their limits and across those of chunks, samples and rounds.
PLACES = [
    ((2, 3, 5000), 1), ((1, 2, 3, 4099), 2), ((2, 3, 4, 5, 8), 2), ((3, 7, 100), 1), ((3, 40, 64), 1),
    ((3, 40, 63), 1), ((2, 5, 33, 16), 2), ((2, 900, 3), 1), ((2, 9, 1030), 2), ((2, 100, 64), -1),
    ((3, 700, 7), -1), ((2, 3, 2048), -1), ((5, 33), -1), ((2, 5000), 1), ((700, 3), 1), ((2, 6, 1, 1), -3),
]  # fmt: skip


@pytest.mark.parametrize("impl", harness.impls())
@pytest.mark.parametrize(("shape", "channel_dim"), PLACES, ids=str)
def test_every_element_has_its_own_coefficients(shape, channel_dim, impl):
    """Bit for bit what one would type in fp32, whatever the coefficients vary with and however they lie in memory.

    In pairs: a kernel is told two strides of the coefficients, by sample and by channel, each of which comes with
    every layout, and with and without the other.
    """
    device = harness.device_of(impl)
    tensors = harness.tensors(4, shape, torch.float32, device=device)
    branches = tensors[:2], tensors[2:]
    generator = torch.Generator().manual_seed(7)
    for batch, channels, layout in pairs(sorted({1, shape[0]}), sorted({1, shape[channel_dim]}), harness.LAYOUTS):
        coefficients = harness.laid_out(torch.randn(2, batch, channels, generator=generator).to(device), layout)
        c, u = (sum(shaped(a, x, channel_dim) * x for a, x in zip(coefficients, branch, strict=True))
                for branch in branches)  # fmt: skip
        result = ops.linear_combination(branches[0], coefficients, channel_dim=channel_dim, impl=impl)
        assert torch.equal(result, c)
        guided = ops.linear_combination_guided(*branches, coefficients, 3.0, channel_dim=channel_dim, impl=impl)
        assert torch.equal(guided, u + 3.0 * (c - u))


@pytest.mark.parametrize("impl", harness.impls())
@pytest.mark.parametrize("dtype", harness.DTYPES, ids=str)
def test_any_number_of_tensors(dtype, impl):
    for count in range(1, 7):
        tensors = harness.tensors(count, (2, 5, 3, 40), dtype, device=harness.device_of(impl))
        by_sample = factors(tensors, count=count)
        args = (*tensors, by_sample)
        coefficients = by_sample.transpose(0, 1)
        result, again = (ops.linear_combination(tensors, coefficients, impl=name) for name in (impl, "reference"))
        harness.within_twice(result, plain(*args), again.double(), terms(*args), f"{count} tensors")
        # A branch that is the other is what both combine to.
        guided = ops.linear_combination_guided(tensors, tensors, coefficients, 4.0, impl=impl)
        assert torch.equal(guided, result)


@pytest.mark.parametrize("impl", harness.impls())
def test_nothing_times_nan_is_nan(impl):
    x, y = harness.tensors(2, (1, 4, 6), torch.float32, device=harness.device_of(impl))
    y[0, 2, 3] = float("nan")
    coefficients = torch.tensor([1.0, 0.0], device=x.device).view(2, 1, 1)
    result = ops.linear_combination((x, y), coefficients, impl=impl)
    assert torch.equal(result.isnan(), y.isnan())
    assert torch.equal(result.nan_to_num(), torch.where(y.isnan(), 0, x))


def test_gradients_reach_the_coefficients():
    tensors = harness.tensors(2, (2, 3, 4), torch.float32)
    coefficients = torch.ones(2, 1, 3, requires_grad=True)
    ops.linear_combination(tensors, coefficients).sum().backward()
    assert torch.allclose(coefficients.grad[:, 0], torch.stack([x.sum(dim=(0, 2)) for x in tensors]))
    with pytest.raises(ValueError, match=r"no gradients|not built"):
        ops.linear_combination(tensors, coefficients, impl="cpp")


def test_tensors_that_do_not_fit():
    x, one = torch.ones(2, 3, 4), torch.ones(1, 1, 1)
    for count in (0, 7):
        with pytest.raises(ValueError, match=f"linear_combination: tensors must be 1 to 6 tensors, got {count}"):
            ops.linear_combination([x] * count, torch.ones(count, 1, 1))
        with pytest.raises(ValueError, match=f"guided: uncond must be 1 to 6 tensors, got {count}"):
            ops.linear_combination_guided([x], [x] * count, one, 2.0)
    with pytest.raises(ValueError, match="guided: cond has 2 tensors, uncond 1"):
        ops.linear_combination_guided([x, x], [x], torch.ones(2, 1, 1), 2.0)
    with pytest.raises(ValueError, match=r"cond\[0\] \(2, 3, 4\) and uncond\[0\] \(2, 3\) differ in shape"):
        ops.linear_combination_guided([x], [x[..., 0]], one, 2.0)
    with pytest.raises(ValueError, match=r"tensors\[0\] \(2, 3, 4\) and out \(3, 4\) differ in shape"):
        ops.linear_combination([x], one, torch.empty(3, 4))
    with pytest.raises(ValueError, match="needs a batch dimension"):
        ops.linear_combination([torch.tensor(1.0)], one)


def test_coefficients_that_do_not_fit():
    x = torch.ones(2, 3, 4)
    for shape in ((2, 1, 1), (1, 3, 1), (1, 1, 2), (1, 1, 4), (1, 1), (1, 2, 3, 1)):
        with pytest.raises(ValueError, match=r"coefficients must be \[1, 2 or 1, 3 or 1\], got"):
            ops.linear_combination([x], torch.ones(shape))
    with pytest.raises(ValueError, match=r"coefficients must be \[1, 2 or 1, 1 or 1\], got \(1, 2, 3\)"):
        ops.linear_combination([x[:, 0, 0]], torch.ones(1, 2, 3))
    for channel_dim in (0, 3, -3):
        with pytest.raises(ValueError, match=rf"channel_dim {channel_dim} is no dimension of \(2, 3, 4\)"):
            ops.linear_combination([x], torch.ones(1, 1, 1), channel_dim=channel_dim)
    with pytest.raises(ValueError, match="the coefficients are on meta, the tensors on cpu"):
        ops.linear_combination([x], torch.ones(1, 1, 1, device="meta"))
    with pytest.raises(ValueError, match=r"coefficients and magnitudes in fp32|not built"):
        ops.linear_combination([x], torch.ones(1, 1, 1).double(), impl="cpp")
