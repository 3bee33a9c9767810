"""cosine: its kernels beside eager torch and torch.compile of the same formula (bench/kernels.py)."""

from test_cosine import CASE

import kernels

test_cosine = kernels.bench(CASE, traffic=2)
