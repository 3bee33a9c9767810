"""block_store(x): a copy into a preallocated buffer."""

import harness

CASE = harness.Case("block_store", 1, lambda x: x, writes=True)

globals().update(harness.tests(CASE))
