"""The fused ops of a step, one file an op: reductions that methods decide by, and formulas that replace a forward.

Everything is per sample (the first dimension is the batch, reductions are over all others) and accumulated in fp32;
NaN propagates.  ``native()`` says whether the compiled CPU kernels were built and loaded; without them every op
runs on plain torch.
"""

from ._native import native
from .accumulate_and_test import accumulate_and_test
from .block_reuse import block_reuse
from .block_store import block_store
from .cfg_combine import cfg_combine
from .cfg_delta_reuse import cfg_delta_reuse
from .cfg_delta_store import cfg_delta_store
from .cosine import cosine
from .direction_magnitude import direction_magnitude, direction_magnitude_guided
from .inner import inner as inner  # for the engine; no op
from .linear_combination import linear_combination, linear_combination_guided
from .norm import norm
from .relative_l1 import relative_l1
from .residual_store import residual_store, residual_store_stats

__all__ = [
    "accumulate_and_test",
    "block_reuse",
    "block_store",
    "cfg_combine",
    "cfg_delta_reuse",
    "cfg_delta_store",
    "cosine",
    "direction_magnitude",
    "direction_magnitude_guided",
    "linear_combination",
    "linear_combination_guided",
    "native",
    "norm",
    "relative_l1",
    "residual_store",
    "residual_store_stats",
]
