"""norm(x) = sqrt(sum x^2)."""

import harness


def plain(x):
    return x.flatten(1).square().sum(1).sqrt() if x.ndim > 1 else x.abs()


CASE = harness.Case("norm", 1, plain)

globals().update(harness.tests(CASE))
