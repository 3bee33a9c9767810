"""accumulate_and_test: one call on a batch of errors, beside the operations of torch it stands for."""

import op_bench
import pytest
import torch

from vaccel import ops


@pytest.mark.parametrize("contender", [c for c in op_bench.contenders() if c != "compiled"])
@pytest.mark.parametrize("batch", [1, 8])
def test_accumulate_and_test(benchmark, batch, contender):
    error, change = torch.zeros(batch, device=op_bench.DEVICE), torch.full((batch,), 1e-9, device=op_bench.DEVICE)
    exceeded = torch.zeros(1, dtype=torch.int32, device=op_bench.DEVICE)
    impl = {"default": None, "eager": "torch"}.get(contender, contender)
    benchmark.group = f"accumulate_and_test {batch}"
    benchmark.extra_info |= {"op": "accumulate_and_test", "shape": f"batch {batch}", "elements": batch,
                             "bytes": 12 * batch, "dtype": "torch.float32", "contender": contender,
                             "device": op_bench.DEVICE}  # fmt: skip
    benchmark.pedantic(lambda: ops.accumulate_and_test(error, change, 1.0, exceeded, impl=impl), rounds=500,
                       warmup_rounds=10)  # fmt: skip
    assert exceeded.item() == 0
