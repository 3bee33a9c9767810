"""The arithmetic of a step, one file an op: what reductions decide on and what stands in for a forward.

Everything is per sample (the first dimension is the batch, all others are reduced over) and accumulated in fp32;
NaN passes through.  ``native()`` says whether the compiled CPU kernels were built and loaded; without them every op
runs on plain torch.
"""

from ._native import native
from .cfg_combine import cfg_combine
from .cosine import cosine
from .direction_magnitude import direction_magnitude
from .norm import norm
from .relative_l1 import relative_l1
from .residual_store import residual_store

__all__ = ["cfg_combine", "cosine", "direction_magnitude", "native", "norm", "relative_l1", "residual_store"]
