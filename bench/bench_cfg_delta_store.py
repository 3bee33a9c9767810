"""cfg_delta_store: its kernels beside eager torch and torch.compile of the same formula (bench/op_bench.py)."""

import op_bench
from test_cfg_delta_store import CASE

test_cfg_delta_store = op_bench.bench(CASE, traffic=3)
