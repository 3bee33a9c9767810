"""direction_magnitude: its kernels beside eager torch and torch.compile of the same formula (bench/kernels.py)."""

from test_direction_magnitude import CASE, GUIDED

import kernels

test_direction_magnitude = kernels.bench(CASE, traffic=3)
test_direction_magnitude_guided = kernels.bench(GUIDED, traffic=4)
