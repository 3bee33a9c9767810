"""residual_store(v, x): r <- v - x; with statistics also norm(v) and relative_l1(v, last)."""

import harness


def plain_stats(v, x, last):
    flat = [t.flatten(1) if v.ndim > 1 else t[:, None] for t in (v, last)]
    norm, change = flat[0].square().sum(1).sqrt(), (flat[0] - flat[1]).abs().sum(1) / flat[1].abs().sum(1)
    return v - x, (norm, change)


CASE = harness.Case("residual_store", 2, lambda v, x: v - x, writes=True)
STATS = harness.Case("residual_store_stats", 3, plain_stats, writes=True)

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

test_against_fp64_stats = harness.against_fp64(STATS)
test_any_layout_stats = harness.any_layout(STATS)
test_any_shape_stats = harness.any_shape(STATS)
test_nan_inf_zero_and_empty_stats = harness.special_values(STATS)
test_each_sample_is_its_own_stats = harness.each_sample_is_its_own(STATS)
test_registered_properly_stats = harness.registered(STATS)
test_compiles_as_one_graph_stats = harness.compiles(STATS)
test_captured_in_a_graph_stats = harness.captured(STATS)
test_past_two_to_the_31_stats = harness.past_two_to_the_31(STATS)
test_refuses_stats = harness.refuses(STATS)
test_the_number_of_threads_changes_no_bit_stats = harness.threads_change_no_bit(STATS)
