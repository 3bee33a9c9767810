"""cfg_combine: its kernels beside eager torch and torch.compile of the same formula (bench/kernels.py)."""

from test_cfg_combine import CASE

import kernels

test_cfg_combine = kernels.bench(CASE, traffic=3)
