"""Plain loops of forecasts beyond one model, one scale and one tensor, in fp64; letters as in ``oracle_forecast``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy import ndarray
from oracle_forecast import Model, Sampled, Weights, combine, full_vectors, known_after


def run_changing(
    branches: Callable[[int], dict[str, Model]],
    scale: Callable[[int], float],
    x: ndarray,
    sigmas: Sequence[float],
    path: Sequence[int],
    weights: Weights,
    order: int = 2,
    corrections: dict[int, ndarray] | None = None,
) -> tuple[Sampled, list[int]]:
    """``run_guided`` with a model, a scale and branches that change along the run; and the forwards of every step.

    Every branch, "cond" and at times "uncond", is forecast from its own computed steps, whichever model has computed
    them.  One that has none as new as the newest step of the path is computed.  At the steps of ``corrections`` the
    solver is given such a combination [K, C] of the computed velocities in place of the newest itself.
    """
    assert 0 in path
    computed: dict[str, dict[int, ndarray]] = {}
    used, forwards = [], []
    for i in range(len(sigmas) - 1):
        branch, made = {}, 0
        newest = max(f for f in path if f <= i)
        for name, model in branches(i).items():
            own = computed.setdefault(name, {})
            if i in path or not own or max(own) < newest:
                branch[name] = own[i] = model(x, i)
                made += 1
                if i in (corrections or {}):
                    branch[name] = combine([own[f] for f in known_after(list(own), 3)], corrections[i])
            else:
                known = known_after(list(own), order)
                branch[name] = combine([own[f] for f in known], weights(i, known))
        v = branch["cond"]
        if "uncond" in branch:
            v = branch["uncond"] + scale(i) * (v - branch["uncond"])
        used.append(v)
        forwards.append(made)
        x = x + (sigmas[i + 1] - sigmas[i]) * v
    return Sampled(x, used), forwards


# --- several tensors ------------------------------------------------------------------------------------------------


def relative(tensors: Sequence[ndarray]) -> ndarray:
    """Trajectories of several tensors, [S, T, C, ...] each, as one [S, T, all their channels, n], for ``latent_error``.

    Each is divided by the root of its mean square and counts as much as another, however many elements it has: the
    mean over the elements of the result's square is that over the tensors of theirs.  Zeros fill shorter ones up.
    """
    flat = [full_vectors(t) for t in tensors]
    longest = max(t.shape[3] for t in flat)
    elements = sum(t[0, 0].size for t in flat)
    parts = []
    for t in flat:
        unit = math.sqrt(float((t**2).mean()))
        share = math.sqrt(elements / (len(flat) * t[0, 0].size))
        parts.append(np.pad(t * share / unit, [(0, 0)] * 3 + [(0, longest - t.shape[3])]))
    return np.concatenate(parts, axis=2)
