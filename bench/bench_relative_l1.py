"""relative_l1: its kernels beside eager torch and torch.compile of the same formula (bench/op_bench.py)."""

import op_bench
from test_relative_l1 import CASE

test_relative_l1 = op_bench.bench(CASE, traffic=2)
