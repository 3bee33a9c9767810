"""The readable fp64 truth of every op: one file an op, plain torch, no kernels.

Everything is per sample: the first dimension is the batch, all others are reduced over.
"""

from .accumulate_and_test import accumulate_and_test
from .block_reuse import block_reuse
from .block_store import block_store
from .cfg_combine import cfg_combine
from .cfg_delta_reuse import cfg_delta_reuse
from .cfg_delta_store import cfg_delta_store
from .cosine import cosine
from .direction_magnitude import direction_magnitude, direction_magnitude_guided
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
    "norm",
    "relative_l1",
    "residual_store",
    "residual_store_stats",
]
