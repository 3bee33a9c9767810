"""residual_store: its kernels beside eager torch and torch.compile of the same formula (bench/kernels.py)."""

from test_residual_store import CASE, STATS

import kernels

test_residual_store = kernels.bench(CASE, traffic=3)
test_residual_store_stats = kernels.bench(STATS, traffic=4)
