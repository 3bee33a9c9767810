"""cfg_delta_store(c, u): d <- u - c."""

import harness

CASE = harness.Case("cfg_delta_store", 2, lambda c, u: u - c, writes=True)

globals().update(harness.tests(CASE))
