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

globals().update(harness.tests(CASE))
