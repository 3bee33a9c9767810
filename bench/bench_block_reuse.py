"""block_reuse: its kernels beside eager torch and torch.compile of the same formula (bench/kernels.py)."""

from test_block_reuse import CASE

import kernels

test_block_reuse = kernels.bench(CASE, traffic=3)
