"""L2P, the learnable linear predictor (arXiv 2604.26365, CVPR 2026): weights of past features, learned for every step.

From full runs with the last block's features F_0 .. F_(T-1), a lower triangular matrix W is fitted,

    minimise E |F_t - sum over j < t of W_tj F_j|^2,    stand-in for step t = sum over j < t of W_tj F_j

by Adam from W_t,t-1 = 1 in the paper (50 prompts, 200 epochs); here the same minimum is solved for, with a ridge that
pulls towards that start (``penalty``, a share of the mean square of the features).

Our reading of what the history holds at inference, both tried, the better stands: ``all``, stand-ins take the place of
skipped features, as the 49 x 49 matrix over every step suggests; ``computed``, computed steps alone, with W fitted for
the path in use.  The second is the stronger one by far and the same least squares, so the method is not
sold short.  The paper's computed steps are evenly spaced (its release has lists tuned by hand for some intervals, which
are not known here): they are ``taylorseer.spaced``'s, with warm-up and growth of the gaps tuned instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from .loop import Scheduled
from .taylorseer import spaced


def fitted(products: np.ndarray, known: Sequence[int], step: int, penalty: float) -> np.ndarray:
    """The weights of ``known`` for ``step``, from the features' products [T, T]."""
    inner = products[np.ix_(known, known)]
    start = np.zeros(len(known))
    start[-1] = 1.0
    ridge = penalty * np.trace(inner) / len(known) * np.eye(len(known))
    return start + np.linalg.solve(inner + ridge, products[list(known), step] - inner @ start)


@dataclasses.dataclass
class _Formula:
    products: np.ndarray
    penalty: float
    history: str

    def __call__(self, known: Sequence[int], step: int) -> np.ndarray:
        if self.history == "computed":
            return fitted(self.products, known, step, self.penalty)
        rows, unit = [], iter(np.eye(len(known)))
        for n in range(step + 1):
            if n in known:
                rows.append(next(unit))
            else:
                rows.append(fitted(self.products, range(n), n, self.penalty) @ np.array(rows))
        return rows[step]


def l2p(
    products: np.ndarray, budget: int, *, history: str, warm: int, power: float, penalty: float, what: str
) -> Scheduled:
    """``products``: the sum over runs of F F^T, [T, T], of the same ``what``."""
    path = spaced(len(products), budget, warm, power=power)
    return Scheduled(path, _Formula(products, penalty, history), what)
