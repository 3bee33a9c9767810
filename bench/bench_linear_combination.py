"""linear_combination: its kernels beside eager torch and torch.compile of the same formula (bench/op_bench.py).

Channels come second, as in latents, or last, as in packed ones.
"""

import op_bench
from test_linear_combination import CASE, GUIDED, PACKED

test_linear_combination = op_bench.bench(CASE, traffic=4)
test_linear_combination_packed = op_bench.bench(PACKED, traffic=4, name="linear_combination, channels last")
test_linear_combination_guided = op_bench.bench(GUIDED, traffic=7)
