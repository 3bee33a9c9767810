"""The readable fp64 truth of every op: one file an op, plain torch, no kernels.

Everything is per sample: the first dimension is the batch, all others are reduced over.
"""

from .cfg_combine import cfg_combine
from .cosine import cosine
from .direction_magnitude import direction_magnitude
from .norm import norm
from .relative_l1 import relative_l1
from .residual_store import residual_store

__all__ = ["cfg_combine", "cosine", "direction_magnitude", "norm", "relative_l1", "residual_store"]
