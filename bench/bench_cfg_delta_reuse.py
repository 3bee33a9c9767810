"""cfg_delta_reuse: its kernels beside eager torch and torch.compile of the same formula (bench/kernels.py)."""

from test_cfg_delta_reuse import CASE

import kernels

test_cfg_delta_reuse = kernels.bench(CASE, traffic=3)
