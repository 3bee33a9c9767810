"""norm: its kernels beside eager torch and torch.compile of the same formula (bench/op_bench.py)."""

import op_bench
from test_norm import CASE

test_norm = op_bench.bench(CASE, traffic=1)
