"""Forecasts in closed form: the inner products of a full run's velocities say what any skipped step would cost.

Let v_0 ... v_(T-1) be the velocities of full runs (``vaccel.flow``) and G the matrix of their inner products, summed
over samples, one a group of latent channels or frequencies.  For computed steps f_1 > ... > f_K the best weights a of
v_i = sum_k a_k v_(f_k) solve G[f, f] a = G[f, i]; what is left of two skipped steps i, i' has the inner product

    R[i, i'] = G[i, i'] - G[i, f] G[f, f]^-1 G[f, i'],

and a stretch skipped from f_1 up to j leaves the latents off by sum_i ds_i (v_i - vhat_i), of squared norm ds^T R ds,
ds_i = s_(i+1) - s_i.  No replay is needed for any of it.  By how much a deviation at j has grown at the end is measured
apart: ``gains``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from .schedules import Edge, solve

PER = ("tensor", "channel", "band", "channel, band")
#: "squares" minimises the sum of squared errors, what unrelated errors add up to.
OBJECTIVES = ("leximax", "sum", "squares")
#: Added to the diagonal, relative to its mean: two equal velocities then share their weight.
RIDGE = 1e-9
#: Longest way from one computed step to the next that is planned.
MAX_GAP = 15
#: Of how many velocities a correction is made.
CORRECTING = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Gram:
    """Inner products of velocities.

    Args:
        levels: [T + 1], the noise levels s of the run.
        products: [bands, channels, T, T], fp64, summed over samples and divided by how many there are.
        elements: latent elements of a sample, all channels together.
    """

    levels: tuple[float, ...]
    products: np.ndarray
    elements: int

    @property
    def num_steps(self) -> int:
        return len(self.levels) - 1

    @functools.cached_property
    def widths(self) -> np.ndarray:
        """ds [T], what the level changes by in a step."""
        return np.diff(np.array(self.levels))

    def grouped(self, per: str) -> np.ndarray:
        """[groups, T, T]: the products of what shares one set of weights.

        Raises ``ValueError`` for an unknown ``per``, or for bands that were not recorded.
        """
        if per not in PER:
            raise ValueError(f"per must be one of {', '.join(map(repr, PER))}, got {per!r}")
        if "band" in per and len(self.products) < 2:
            raise ValueError(f"per={per!r} needs a calibration with frequency bands")
        if per not in self._groups:
            axes = tuple(axis for axis, name in enumerate(("band", "channel")) if name not in per)
            self._groups[per] = self.products.sum(axis=axes).reshape(-1, self.num_steps, self.num_steps)
        return self._groups[per]

    @functools.cached_property
    def _groups(self) -> dict[str, np.ndarray]:
        return {}

    def weights(self, known: Sequence[int], step: int, per: str = "channel") -> np.ndarray:
        """The least-squares weights [K, bands, channels] (1 of what is not told apart) of ``step``'s velocity."""
        solved = _solved(self.grouped(per), np.array([known]), np.array([[step]]))[:, 0, :, 0]  # [groups, K]
        bands = len(self.products) if "band" in per else 1
        return solved.T.reshape(len(known), bands, -1)

    def left(self, known: Sequence[int], step: int, per: str = "channel") -> float:
        """What the forecast of ``step``'s velocity is off by: root mean square over the elements."""
        square = _left(self.grouped(per), np.array([known]), np.array([[step]]))[0, 0, 0]
        return math.sqrt(max(float(square), 0.0) / self.elements)

    def deviation(self, known: Sequence[int], end: int, per: str = "channel") -> float:
        """What the latents are off by at step ``end`` when all between known[0] and it is skipped (rms)."""
        steps = np.arange(known[0] + 1, end)
        if not len(steps):
            return 0.0
        ds = self.widths[steps]
        left = _left(self.grouped(per), np.array([known]), steps[None])[0]
        return math.sqrt(max(float(ds @ left @ ds), 0.0) / self.elements)


def _blocks(products: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """products [G, T, T] at rows [n, a] and columns [n, b]: [G, n, a, b]."""
    return products[:, rows[:, :, None], columns[:, None, :]]


def _solved(products: np.ndarray, known: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Weights [G, n, K, m] of the steps [n, m] from the known [n, K]."""
    return np.linalg.solve(_ridged(_blocks(products, known, known)), _blocks(products, known, steps))


def _ridged(own: np.ndarray) -> np.ndarray:
    """Inner products [..., K, K] with the ridge on their diagonals."""
    count = own.shape[-1]
    return own + RIDGE * np.trace(own, axis1=-2, axis2=-1)[..., None, None] / count * np.eye(count)


def _left(products: np.ndarray, known: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """R [n, m, m], over all groups together."""
    cross = _blocks(products, known, steps)
    explained = np.einsum("gnka,gnkb->nab", cross, _solved(products, known, steps))
    return _blocks(products.sum(axis=0, keepdims=True), steps, steps)[0] - explained


@dataclasses.dataclass(frozen=True)
class Plan:
    """A path: its computed steps, and the error of every stretch between them, in their order.

    ``predicted`` is what the finished latents will be off by (rms), errors of stretches taken as unrelated.
    """

    full_steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def predicted(self) -> float:
        return math.sqrt(math.fsum(e * e for e in self.errors))


def states(num_steps: int, order: int, max_gap: int) -> list[tuple[int, ...]]:
    """What may be known at a computed step: itself and up to order - 1 before it, newest first; ascending.

    Fewer only where the run has computed no more.
    """
    found: list[tuple[int, ...]] = []
    for newest in range(num_steps):
        ways = [(newest,)]
        for _ in range(order - 1):
            ways = [
                longer
                for way in ways
                for longer in ([(*way, f) for f in range(max(0, way[-1] - max_gap), way[-1])] if way[-1] > 0 else [way])
            ]
        found.extend(ways)
    return found


def edge_errors(
    gram: Gram, gains: Sequence[float], known: Sequence[tuple[int, ...]], max_gap: int, per: str
) -> np.ndarray:
    """[states, max_gap]: the error of skipping all from a state up to 1 ... max_gap steps on, times the gain there.

    States are all of one length; infinite beyond the last step.
    """
    products, last = gram.grouped(per), gram.num_steps - 1
    errors = np.full((len(known), max_gap), np.inf)
    for begin in range(0, len(known), 512):  # bounds the memory
        part = np.array(known[begin : begin + 512])
        ends = part[:, :1] + np.arange(1, max_gap + 1)  # where each stretch ends: it skips what lies before
        steps = np.minimum(ends[:, :-1], last)
        ds = gram.widths[steps]
        left = _left(products, part, steps) * ds[:, :, None] * ds[:, None, :]
        squares = np.stack([left[:, :m, :m].sum(axis=(1, 2)) for m in range(max_gap)], axis=1)
        found = np.sqrt(np.maximum(squares, 0) / gram.elements) * np.array(gains)[np.minimum(ends, last)]
        errors[begin : begin + 512] = np.where(ends <= last, found, np.inf)
    return errors


def plans(
    gram: Gram, gains: Sequence[float], *, order: int = 2, max_gap: int = MAX_GAP, per: str = "channel",
    objective: str = "leximax",
) -> dict[int, Plan]:  # fmt: skip
    """The best path of every budget: how many steps are computed, the first and the last among them.

    The error of a stretch depends on the last ``order`` computed steps, so those are the nodes of the graph that
    ``vaccel.schedules.solve`` goes through, exactly.

    Args:
        gains: [T], by what a deviation of the latents that enter a step has grown at the end.
        order: K, from how many velocities a forecast is made.
        max_gap: longest way from one computed step to the next.

    Raises ``ValueError`` for settings out of range.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, got {objective!r}")
    if order < 1 or max_gap < 1 or len(gains) != gram.num_steps:
        raise ValueError(
            f"order and max_gap must be >= 1 and there is a gain a step, got {order}, {max_gap}, {len(gains)} gains"
        )
    nodes = states(gram.num_steps, order, max_gap)
    number = {known: n for n, known in enumerate(nodes)}
    edges: list[Edge] = []
    kept: list[float] = []
    for count, group in itertools.groupby(sorted(nodes, key=len), key=len):
        group = list(group)
        for known, errors in zip(group, edge_errors(gram, gains, group, max_gap, per), strict=True):
            for gap in np.flatnonzero(np.isfinite(errors)):
                following = ((known[0] + int(gap) + 1, *known))[: min(order, count + 1)]
                if following in number:
                    kept.append(float(errors[gap]))
                    weighed = kept[-1] ** 2 if objective == "squares" else kept[-1]
                    edges.append(Edge(number[known], number[following], 1, weighed))
    finish = len(nodes)
    edges += [Edge(number[known], finish, 0, 0.0) for known in nodes if known[0] == gram.num_steps - 1]
    kept += [0.0] * (len(edges) - len(kept))
    found = solve(finish + 1, edges, objective="sum" if objective == "squares" else objective)
    return {
        cost + 1: Plan((0, *(nodes[edges[e].end][0] for e in path.edges[:-1])), tuple(kept[e] for e in path.edges[:-1]))
        for cost, path in found.items()
    }


def outputs(
    gram: Gram, path: Sequence[int], response: Sequence[Sequence[float]], *, order: int = 2, per: str = "channel"
) -> dict[int, np.ndarray]:
    """What the solver is given along a path so that the latents stay where full runs have them: weights by step.

    At a skipped step [order, bands, channels] of the velocities computed last; at a computed one, where the latents
    have gone astray, [CORRECTING, ...] of that velocity itself and those before it.  Each step's are those that leave
    the least of

        D_(i+1) = sum_(m <= i) W[i+1, m] (c_m - v_m),

    c_m being what step m is given and W the solver's own response to it, however many steps it looks back: a velocity
    that is known at last tells what the steps before it were off by, and is made to pay for that.
    """
    products, weighs, steps = gram.grouped(per), np.array(response), gram.num_steps
    groups, bands = len(products), len(gram.products) if "band" in per else 1
    off = np.zeros((steps, groups, steps))  # c_m - v_m, in terms of all velocities
    computed: list[int] = []
    found = {}
    for i in range(steps):
        full = i in path
        computed = [i, *computed] if full else computed
        owed = np.einsum("m,mgt->gt", weighs[i + 1, :i], off[:i]) / weighs[i + 1, i]
        if full and not owed.any():
            continue
        wanted = -owed
        if not full:
            wanted[:, i] += 1
        used = computed[: CORRECTING if full else order]
        own = _ridged(products[:, used][:, :, used])
        solved = np.linalg.solve(own, np.einsum("gkt,gt->gk", products[:, used], wanted)[..., None])[..., 0]
        off[i][:, used] += solved
        if full:
            solved[:, 0] += 1
        else:
            off[i][:, i] -= 1
        found[i] = solved.T.reshape(len(used), bands, -1)
    return found


@torch.no_grad()
def inner_products(velocities: torch.Tensor, axis: int, bands: int) -> np.ndarray:
    """Of one run's velocities [T, B, ...]: [bands, channels, T, T] in fp64, the mean over the B clips.

    A channel at a time, so that no second trajectory is needed; the same bits every time.

    Args:
        axis: of one velocity [B, ...], which counts channels.
        bands: 2 to tell low spatial frequencies from high ones, else 1.
    """
    trajectory = velocities.movedim(axis + 1 if axis >= 0 else axis, 0)  # [channels, T, B, ...]
    steps, clips = velocities.shape[:2]
    out = np.empty((bands, len(trajectory), steps, steps))
    for number, channel in enumerate(trajectory):
        channel = channel.double()
        parts = [channel]
        if bands == 2:
            rows, columns = (torch.from_numpy(low_frequencies(n)).to(channel) for n in channel.shape[-2:])
            low = rows @ channel @ columns
            parts = [low, channel - low]
        for band, part in enumerate(parts):
            flat = part.reshape(steps, -1)
            out[band, number] = (flat @ flat.T / clips).cpu().numpy()
    return out


def low_frequencies(size: int, share: float = 0.5) -> np.ndarray:
    """[size, size], the projection onto the lowest ``share`` of the frequencies of an orthonormal DCT-II."""
    frequency, place = np.arange(math.ceil(share * size))[:, None], np.arange(size)[None]
    cosines = np.cos(np.pi * (place + 0.5) * frequency / size) * math.sqrt(2 / size)
    cosines[0] /= math.sqrt(2)
    return cosines.T @ cosines
