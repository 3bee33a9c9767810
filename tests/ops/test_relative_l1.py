"""relative_l1(a, b) = sum |a - b| / sum |b|."""

import harness


def plain(a, b):
    a, b = (a.flatten(1), b.flatten(1)) if a.ndim > 1 else (a[:, None], b[:, None])
    return (a - b).abs().sum(1) / b.abs().sum(1)


CASE = harness.Case("relative_l1", 2, plain)

globals().update(harness.tests(CASE))
