"""Several ranks, one video: who shares a call of the denoiser, and how those come to the same decisions."""

from .agreement import Agreement
from .exchange import LIMIT, RanksApart
from .sharing import agreement_of

__all__ = ["LIMIT", "Agreement", "RanksApart", "agreement_of"]
