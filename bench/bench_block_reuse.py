"""block_reuse: its kernels beside eager torch and torch.compile of the same formula (bench/op_bench.py)."""

import op_bench
from test_block_reuse import CASE

test_block_reuse = op_bench.bench(CASE, traffic=3)
