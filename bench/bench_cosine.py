"""cosine: its kernels beside eager torch and torch.compile of the same formula (bench/op_bench.py)."""

import op_bench
from test_cosine import CASE

test_cosine = op_bench.bench(CASE, traffic=2)
