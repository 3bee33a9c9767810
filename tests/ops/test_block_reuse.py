"""block_reuse(x, r) = x + r."""

import harness

CASE = harness.Case("block_reuse", 2, lambda x, r: x + r, writes=True)

globals().update(harness.tests(CASE))
