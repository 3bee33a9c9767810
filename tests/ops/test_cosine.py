"""cosine(a, b) = <a, b> / (norm(a) norm(b))."""

import harness

from vaccel import reference


def plain(a, b):
    a, b = (a.flatten(1), b.flatten(1)) if a.ndim > 1 else (a[:, None], b[:, None])
    return (a * b).sum(1) / (a.square().sum(1).sqrt() * b.square().sum(1).sqrt())


def terms(a, b):
    """What the products add up to without their signs."""
    return reference.cosine(a.abs(), b.abs())


CASE = harness.Case("cosine", 2, plain, terms=terms)

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
test_the_number_of_threads_changes_no_bit = harness.threads_change_no_bit(CASE)
