"""block_store: its kernels beside eager torch and torch.compile of the same formula (bench/kernels.py)."""

from test_block_store import CASE

import kernels

test_block_store = kernels.bench(CASE, traffic=2)
