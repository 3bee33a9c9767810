"""direction_magnitude(x, r, m) = m (x + r) / norm(x + r); guided: both branches and their combination."""

import harness
import pytest
import torch

from vaccel import ops


def plain(x, r, m):
    d = x + r
    length = d.flatten(1).square().sum(dim=1, dtype=x.dtype).sqrt() if x.ndim > 1 else d.abs()
    return d * (m.to(x.dtype) / length).view(-1, *[1] * (x.ndim - 1))


def plain_guided(x, c, u, m, w):
    c, u = plain(x, c, m), plain(x, u, m)
    return u + w * (c - u)


def guided_terms(x, c, u, m, w):
    """|u| + |w| (|c| + |u|): where both branches point one way, the rounding of each comes w times into their sum."""
    c, u = (plain(*(t.double() for t in (x, r, m))).abs() for r in (c, u))
    return u + abs(w) * (c + u)


def magnitudes(inputs):
    return (torch.rand(len(inputs[0]), generator=torch.Generator().manual_seed(5)).add(0.5).to(inputs[0].device),)


CASE = harness.Case("direction_magnitude", 2, plain, magnitudes)
GUIDED = harness.Case(
    "direction_magnitude_guided", 3, plain_guided, lambda inputs: (*magnitudes(inputs), 5.0), guided_terms
)

globals().update(harness.tests(CASE))
globals().update(harness.tests(GUIDED))


@pytest.mark.parametrize("impl", harness.impls())
def test_the_length_is_what_was_asked_for(impl):
    x, r = harness.tensors(2, (3, 16, 4, 4), torch.float32, device=harness.device_of(impl))
    m = torch.tensor([0.5, 1.0, 7.0]).to(x.device)
    result = ops.direction_magnitude(x, r, m, impl=impl)
    assert torch.allclose(ops.norm(result, impl="torch"), m, rtol=1e-6)
    assert torch.allclose(ops.cosine(result, x + r, impl="torch"), torch.ones_like(m), rtol=1e-6)


@pytest.mark.parametrize("impl", harness.impls())
def test_guided_is_the_two_branches_combined(impl):
    x, c, u = harness.tensors(3, (2, 16, 4, 4), torch.float32, device=harness.device_of(impl))
    m = torch.tensor([0.5, 7.0]).to(x.device)
    branches = [ops.direction_magnitude(x, r, m, impl=impl) for r in (c, u)]
    guided = ops.direction_magnitude_guided(x, c, u, m, 4.0, impl=impl)
    assert torch.allclose(guided, ops.cfg_combine(*branches, 4.0, impl=impl), rtol=1e-5, atol=1e-5)


def test_magnitudes_that_do_not_fit():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"magnitude must be \[2\], got \(3,\)"):
        ops.direction_magnitude(x, x, torch.ones(3))
    with pytest.raises(ValueError, match=r"magnitudes in fp32|not built"):
        ops.direction_magnitude(x, x, torch.ones(2).double(), impl="cpp")
