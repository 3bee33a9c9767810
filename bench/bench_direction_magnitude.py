"""direction_magnitude: its kernels beside eager torch and torch.compile of the same formula (bench/op_bench.py)."""

import op_bench
from test_direction_magnitude import CASE, GUIDED

test_direction_magnitude = op_bench.bench(CASE, traffic=3)
test_direction_magnitude_guided = op_bench.bench(GUIDED, traffic=4)
