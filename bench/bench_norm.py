"""norm: its kernels beside eager torch and torch.compile of the same formula (bench/kernels.py)."""

from test_norm import CASE

import kernels

test_norm = kernels.bench(CASE, traffic=1)
