"""cfg_delta_store: its kernels beside eager torch and torch.compile of the same formula (bench/kernels.py)."""

from test_cfg_delta_store import CASE

import kernels

test_cfg_delta_store = kernels.bench(CASE, traffic=3)
