"""accumulate_and_test(E, c): E <- E + offset + factor c, and whether any sample is past the threshold."""

import harness
import pytest
import torch

from vaccel import ops, reference

IMPLS = harness.impls()


def run(error, change, threshold, impl, **kwargs):
    device = harness.device_of(impl)
    error, change = error.clone().to(device), change.to(device)
    exceeded = torch.full((1,), -7, dtype=torch.int32, device=device)
    assert ops.accumulate_and_test(error, change, threshold, exceeded, impl=impl, **kwargs) is exceeded
    return error.cpu(), exceeded.item()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("batch", [1, 3, 255, 256, 257, 5000])
def test_against_fp64(batch, impl):
    generator = torch.Generator().manual_seed(batch)
    error, change = (torch.rand(batch, generator=generator) for _ in range(2))
    for threshold in (0.5, 2.5):
        result, exceeded = run(error, change, threshold, impl, offset=1.0, factor=-1.0)
        truth, past = reference.accumulate_and_test(error, change, 1.0, -1.0, threshold)
        assert (result.double() - truth).abs().max() <= 4 * torch.finfo(torch.float32).eps
        assert exceeded == past


@pytest.mark.parametrize("impl", IMPLS)
def test_the_threshold_itself_is_not_past_it(impl):
    zero = torch.zeros(2)
    assert run(zero, torch.tensor([0.25, 0.5]), 0.5, impl)[1] == 0
    assert run(zero, torch.tensor([0.25, 0.500001]), 0.5, impl)[1] == 1
    assert run(zero, torch.tensor([float("inf"), 0.0]), 0.5, impl)[1] == 1


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_is_past_every_threshold(impl):
    error, exceeded = run(torch.zeros(3), torch.tensor([0.0, float("nan"), 0.0]), 1e9, impl)
    assert exceeded == 1
    assert error.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("impl", IMPLS)
def test_a_run_adds_up(impl):
    device = harness.device_of(impl)
    error, exceeded = torch.zeros(1, device=device), torch.zeros(1, dtype=torch.int32, device=device)
    change = torch.full((1,), 0.25, device=device)
    flags = [ops.accumulate_and_test(error, change, 0.6, exceeded, impl=impl).item() for _ in range(4)]
    assert flags == [0, 0, 1, 1]


@pytest.mark.skipif("cpp" not in harness.names(), reason="no compiled kernels")
def test_registered_properly():
    args = torch.zeros(3), torch.ones(3), 0.0, 1.0, 2.0, torch.zeros(1, dtype=torch.int32)
    results = torch.library.opcheck(torch.ops.vaccel.accumulate_and_test.default, args)
    assert set(results.values()) == {"SUCCESS"}


def test_refuses():
    error, flag = torch.zeros(2), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="differ in shape"):
        ops.accumulate_and_test(error, torch.zeros(3), 1.0, flag)
    with pytest.raises(ValueError, match=r"exceeded must be \[1\] in int32"):
        ops.accumulate_and_test(error, error, 1.0, torch.zeros(1))
    with pytest.raises(ValueError, match="errors are in fp32"):
        ops.accumulate_and_test(error.double(), error.double(), 1.0, flag)
