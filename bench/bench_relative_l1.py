"""relative_l1: its kernels beside eager torch and torch.compile of the same formula (bench/kernels.py)."""

from test_relative_l1 import CASE

import kernels

test_relative_l1 = kernels.bench(CASE, traffic=2)
