"""cfg_delta_reuse(c, d, w) = c + (1 - w) d."""

import harness
import pytest
import torch

from vaccel import ops

CASE = harness.Case("cfg_delta_reuse", 2, lambda c, d, w: c + (1 - w) * d, lambda inputs: (5.3,), writes=True)

test_against_fp64 = harness.against_fp64(CASE)
test_any_layout = harness.any_layout(CASE)
test_any_shape = harness.any_shape(CASE)
test_nan_inf_zero_and_empty = harness.special_values(CASE)
test_each_sample_is_its_own = harness.each_sample_is_its_own(CASE)
test_registered_properly = harness.registered(CASE)
test_compiles_as_one_graph = harness.compiles(CASE)
test_captured_in_a_graph = harness.captured(CASE)
test_past_two_to_the_31 = harness.past_two_to_the_31(CASE)
test_refuses = harness.refuses(CASE)
test_gradients_are_left_to_torch = harness.gradients(CASE)


@pytest.mark.parametrize("impl", harness.impls())
def test_with_the_delta_of_this_very_step_it_is_guidance(impl):
    cond, uncond = harness.tensors(2, (2, 16, 5, 8, 8), torch.float32, device=harness.device_of(impl))
    delta = ops.cfg_delta_store(cond, uncond, impl=impl)
    guided = ops.cfg_combine(cond, uncond, 4.0, impl=impl)
    assert torch.allclose(ops.cfg_delta_reuse(cond, delta, 4.0, impl=impl), guided, rtol=1e-5, atol=1e-5)
