"""cfg_delta_store(c, u): d <- u - c."""

import harness

CASE = harness.Case("cfg_delta_store", 2, lambda c, u: u - c, writes=True)

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
