"""residual_store(v, x): r <- v - x; with statistics also norm(v) and relative_l1(v, last)."""

import harness


def plain_stats(v, x, last):
    flat = [t.flatten(1) if v.ndim > 1 else t[:, None] for t in (v, last)]
    norm, change = flat[0].square().sum(1).sqrt(), (flat[0] - flat[1]).abs().sum(1) / flat[1].abs().sum(1)
    return v - x, (norm, change)


CASE = harness.Case("residual_store", 2, lambda v, x: v - x, writes=True)
STATS = harness.Case("residual_store_stats", 3, plain_stats, writes=True)

globals().update(harness.tests(CASE))
globals().update(harness.tests(STATS))
