"""residual_store: its kernels beside eager torch and torch.compile of the same formula (bench/op_bench.py)."""

import op_bench
from test_residual_store import CASE, STATS

test_residual_store = op_bench.bench(CASE, traffic=3)
test_residual_store_stats = op_bench.bench(STATS, traffic=4)
