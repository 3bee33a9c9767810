"""cfg_combine(c, u, w) = u + w (c - u)."""

import harness
import pytest
import torch

from vaccel import ops

CASE = harness.Case(
    "cfg_combine",
    2,
    lambda c, u, w: u + w * (c - u),
    lambda inputs: (5.3,),
    terms=lambda c, u, w: u.double().abs() + w * (c.double() - u.double()).abs(),
    writes=True,
    differentiable=True,
)

globals().update(harness.tests(CASE))


@pytest.mark.parametrize("impl", harness.impls())
def test_guidance_is_the_pipelines_bit_for_bit(impl):
    cond, uncond = harness.tensors(2, (2, 16, 5, 8, 8), torch.float32, device=harness.device_of(impl))
    assert torch.equal(ops.cfg_combine(cond, uncond, 5.3, impl=impl), uncond + 5.3 * (cond - uncond))


@pytest.mark.parametrize("impl", harness.impls())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_is_read_and_rounded_as_torch_does(dtype, impl):
    """All 65536 bit patterns in, u + 1 (c - u) with u = 0 out: subnormal numbers, infinities, NaN and ties included."""
    device = harness.device_of(impl)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(4, -1).to(device)
    result = ops.cfg_combine(every, torch.zeros_like(every), 1.0, impl=impl)
    assert torch.equal(result.isnan(), every.isnan())
    interpreted = impl == "triton" and device == "cpu" and dtype == torch.bfloat16
    if interpreted:  # by the interpreter's own conversions, which get subnormal bf16 numbers wrong and round otherwise
        normal = ~(every.abs() < torch.finfo(dtype).smallest_normal)
        every, result = every[normal], result[normal]
    assert torch.equal(result.nan_to_num(), every.nan_to_num())
    if interpreted:
        return
    between = torch.rand(2**14, generator=torch.Generator().manual_seed(0)).mul(40).sub(30).exp2()
    scale = float(torch.rand((), generator=torch.Generator().manual_seed(1))) + 1
    c = between.to(dtype)[None].to(device)
    assert torch.equal(ops.cfg_combine(c, torch.zeros_like(c), scale, impl=impl), (c.float() * scale).to(dtype))


def test_an_output_that_a_kernel_cannot_write():
    a = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"outputs contiguous|not built"):
        ops.cfg_combine(a, a, 1.0, torch.empty(3, 2).T, impl="cpp")
    assert torch.equal(ops.cfg_combine(a, a, 1.0, torch.empty(3, 2).T), a)
