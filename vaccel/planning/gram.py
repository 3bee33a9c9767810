"""Forecasts in closed form: least squares over the inner products of a full run's velocities.

Let v_0 ... v_(T-1) be the velocities of full runs (``vaccel.planning.flow``) and G the Gram matrix of their inner
products, summed over samples, one matrix for each group of latent channels or frequencies.  For computed steps
f_1 > ... > f_K the least-squares weights a of v_i = sum_k a_k v_(f_k) solve G[f, f] a = G[f, i].  The residuals of two
skipped steps i and i' have the inner product

    R[i, i'] = G[i, i'] - G[i, f] G[f, f]^-1 G[f, i'],

and skipping all steps between f_1 and j changes the latents at step j by sum_i ds_i (v_i - vhat_i), whose squared norm
is ds^T R ds with ds_i = s_(i+1) - s_i.  None of this needs a further run of the model.  The factor by which an error of
the latents at step j has grown at the end of the run is measured separately: ``error_growth``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from ..cache.frequencies import low_frequencies
from .channels import Channels
from .schedules import UnitPaths, check_size, solve_units

PER = ("tensor", "channel", "band", "channel, band")
#: "squares" minimises the sum of squared errors, which is how uncorrelated errors add up.
OBJECTIVES = ("leximax", "sum", "squares")
#: Regularisation added to the diagonal, relative to its mean: two equal velocities then share their weight.
RIDGE = 1e-9
#: Largest distance, in steps, from one computed step to the next in a plan.
MAX_GAP = 15
#: Largest order: numbers of up to 4096 steps, so many of them, fit into 64 bits together.
MOST_ORDER = 5
#: Number of velocities that a correction combines.
CORRECTING = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Gram:
    """Inner products of velocities.

    Args:
        levels: [T + 1], the noise levels s of the run.
        products: [bands, channels, T, T], fp64, summed over samples and divided by how many there are.
        elements: number of latent elements of a sample, over all channels.
        tensors: the number of channels of each tensor, where a model predicts several, such as sound beside video; ()
            where it is one.  Their channels follow one another in ``products``.
    """

    levels: tuple[float, ...]
    products: np.ndarray
    elements: int
    tensors: tuple[int, ...] = ()

    @property
    def num_steps(self) -> int:
        return len(self.levels) - 1

    @functools.cached_property
    def widths(self) -> np.ndarray:
        """ds [T], the change of the noise level in each step."""
        return np.diff(np.array(self.levels))

    def grouped(self, per: str) -> np.ndarray:
        """[groups, T, T]: the products summed over each group of elements that share one set of weights.

        Such a group never has elements of two tensors.

        Raises ``ValueError`` for an unknown ``per``, or for bands that were not recorded.
        """
        if per not in PER:
            raise ValueError(f"per must be one of {', '.join(map(repr, PER))}, got {per!r}")
        if "band" in per and len(self.products) < 2:
            raise ValueError(f"per={per!r} needs a calibration with frequency bands")
        if per not in self._groups:
            products, whole = self.products, "channel" not in per
            if whole and self.tensors:
                products = np.add.reduceat(products, self._begins, axis=1)
            sizes = zip(("band", "channel"), products.shape, strict=False)
            apart = f"{per}, channel" if self.tensors else per
            axes = tuple(axis for axis, (name, size) in enumerate(sizes) if name not in apart and size > 1)
            summed = products.sum(axis=axes) if axes else products  # which may be large, and is then shared
            self._groups[per] = summed.reshape(-1, self.num_steps, self.num_steps)
        return self._groups[per]

    def weighed(self, per: str) -> np.ndarray:
        """``grouped``, with every tensor in units of its own mean square, so that each counts as much as another.

        What follows from one tensor alone is in the latents' units; of several, errors are relative to the velocities'
        root mean square: the root of the mean, over the tensors, of their squares.
        """
        products = self.grouped(per)
        if not self.tensors:
            return products
        key = f"weighed {per}"
        if key not in self._groups:
            squares = np.trace(np.add.reduceat(self.products, self._begins, axis=1), axis1=-2, axis2=-1).sum(axis=0)
            units = np.divide(
                self.elements * self.num_steps, len(squares) * squares, out=np.zeros_like(squares), where=squares > 0
            )
            own = np.repeat(units, self.tensors if "channel" in per else 1)
            self._groups[key] = products * np.tile(own, len(products) // len(own))[:, None, None]
        return self._groups[key]

    def expanded(self, solved: np.ndarray, per: str) -> np.ndarray:
        """Weights [groups, K] as [K, bands, channels]; an axis is 1 long where it is shared."""
        bands = len(self.products) if "band" in per else 1
        weights = solved.T.reshape(solved.shape[1], bands, -1)
        if self.tensors and "channel" not in per:
            weights = np.repeat(weights, self.tensors, axis=2)
        return weights

    @functools.cached_property
    def _begins(self) -> np.ndarray:
        """The first channel of every tensor."""
        return np.cumsum([0, *self.tensors[:-1]])

    @functools.cached_property
    def _groups(self) -> dict[str, np.ndarray]:
        return {}

    def weights(self, known: Sequence[int], step: int, per: str = "channel") -> np.ndarray:
        """The least-squares weights of ``step``'s velocity, [K, bands, channels]; an axis is 1 long where it is shared.

        Args:
            known: the K computed steps that it is forecast from, newest first.
        """
        solved = _solved(self.grouped(per), np.array([known]), np.array([[step]]))[:, 0, :, 0]  # [groups, K]
        return self.expanded(solved, per)

    def residual_norm(self, known: Sequence[int], step: int, per: str = "channel") -> float:
        """The error of the forecast of ``step``'s velocity: root mean square over the elements."""
        square = _residual_products(self.grouped(per), np.array([known]), np.array([[step]]))[0, 0, 0]
        return math.sqrt(max(float(square), 0.0) / self.elements)

    def latent_error(self, known: Sequence[int], end: int, per: str = "channel") -> float:
        """The error of the latents at step ``end`` when all steps after known[0] and before it are skipped (rms)."""
        steps = np.arange(known[0] + 1, end)
        if not len(steps):
            return 0.0
        ds = self.widths[steps]
        residuals = _residual_products(self.weighed(per), np.array([known]), steps[None])[0]
        return math.sqrt(max(float(ds @ residuals @ ds), 0.0) / self.elements)


def _blocks(products: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """products [G, T, T] at rows [n, a] and columns [n, b]: [G, n, a, b]."""
    return products[:, rows[:, :, None], columns[:, None, :]]


def _solved(products: np.ndarray, known: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Least-squares weights [G, n, K, m] of the steps [n, m] from the computed steps ``known`` [n, K]."""
    return np.linalg.solve(_ridged(_blocks(products, known, known)), _blocks(products, known, steps))


def _ridged(own: np.ndarray) -> np.ndarray:
    """Inner products [..., K, K] with the ridge on their diagonals; of velocities that are all zero, the identity.

    A channel that never moves is forecast with weights of zero then, as its inner products with all others are.
    """
    count = own.shape[-1]
    squares = np.trace(own, axis1=-2, axis2=-1)[..., None, None]
    return own + np.where(squares > 0, RIDGE * squares / count, 1.0) * np.eye(count)


def _residual_products(products: np.ndarray, known: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """R [n, m, m], summed over all groups."""
    cross = _blocks(products, known, steps)
    explained = np.einsum("gnka,gnkb->nab", cross, _solved(products, known, steps))
    return _blocks(products.sum(axis=0, keepdims=True), steps, steps)[0] - explained


@dataclasses.dataclass(frozen=True)
class Plan:
    """A path: its computed steps, and the error of the skipped steps after each of them, in their order.

    ``predicted`` is the expected error of the finished latents (rms), with the errors taken as uncorrelated.
    """

    full_steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def predicted(self) -> float:
        return math.sqrt(math.fsum(e * e for e in self.errors))


def states(num_steps: int, order: int, max_gap: int) -> list[tuple[int, ...]]:
    """The nodes of the graph: a computed step and the order - 1 computed steps before it, newest first; ascending.

    Near the beginning of a run, where fewer steps have been computed, a node has fewer.
    """
    return [tuple(f for f in known if f >= 0) for known in _nodes(num_steps, order, max_gap).tolist()]


def _nodes(num_steps: int, order: int, max_gap: int) -> np.ndarray:
    """``states`` as rows [n, order], with -1 where there are no more steps."""
    found = np.arange(num_steps)[:, None]
    for _ in range(order - 1):
        last = found[:, -1]
        ways = np.where(last > 0, np.minimum(last, max_gap), 1)  # the step before: one of so many, or none
        row = np.repeat(np.arange(len(found)), ways)
        number = np.arange(len(row)) - np.repeat(np.cumsum(ways) - ways, ways)
        before = np.where(last[row] > 0, np.maximum(last[row] - max_gap, 0) + number, -1)
        found = np.column_stack([found[row], before])
    return found


def edge_errors(
    gram: Gram, error_growth: Sequence[float], known: Sequence[Sequence[int]] | np.ndarray, max_gap: int, per: str,
    corrected: bool = False,
) -> np.ndarray:  # fmt: skip
    """[states, max_gap]: the error at the end of the run of computing the next step 1 ... max_gap steps after a state.

    This is the error of the latents at that step, times ``error_growth`` there; where that is step T, which nothing
    computes, all the remaining ones are skipped.  Infinite beyond it.  Where
    the next step is ``corrected`` (``solver_weights``), what it cannot make up for lies between that and the error that
    its own velocity and the known ones leave unexplained, times the growth of the step after it: their geometric mean
    is taken.  It ranked paths by their measured errors better than either.

    Args:
        known: states of one length, newest step first.
    """
    steps, growth = gram.num_steps, np.array([*error_growth, 1.0, 1.0])  # after the last step nothing grows
    errors = np.full((len(known), max_gap), np.inf)
    for begin in range(0, len(known), 512):  # bounds the memory
        part = np.array(known[begin : begin + 512])
        ends = part[:, :1] + np.arange(1, max_gap + 1)  # where each stretch ends: it skips what lies before
        at = np.minimum(ends, steps)
        before, after = _stretches(gram, part, at, per)
        found = np.sqrt(before / gram.elements) * growth[at]
        if corrected:
            paid = np.sqrt(found * np.sqrt(after / gram.elements) * growth[at + 1])
            found = np.where(at < steps, paid, found)
        errors[begin : begin + 512] = np.where(ends <= steps, found, np.inf)
    return errors


def _stretches(gram: Gram, known: np.ndarray, ends: np.ndarray, per: str) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors [n, m] of the latents where all steps after known[:, 0] and before ``ends`` [n, m] are skipped.

    They are e = sum_i ds_i (v_i - vhat_i) over the skipped steps.  The second is what remains of e once the velocity of
    the step at the end, and the known ones, explain of it what they can; without meaning where that is step T.
    """
    products, ds = gram.weighed(per), gram.widths
    summed = np.cumsum(ds[:, None] * products, axis=1)  # [G, T, T]: sum_(m <= a) ds_m v_m . v_b
    first = known[:, :1]
    inverse = np.linalg.inv(_ridged(_blocks(products, known, known)))
    of_known = summed[:, (ends - 1)[:, :, None], known[:, None]] - summed[:, first[:, :, None], known[:, None]]
    by = np.minimum(ends, len(ds) - 1)
    of_end = summed[:, ends - 1, by] - summed[:, first, by]
    # |sum_i ds_i v_i|^2 grows by a step's own square and twice its product with the sum before it.
    skipped = np.minimum(first + np.arange(ends.shape[1]), len(ds) - 1)  # of which the first is known, and adds nothing
    steps = 2 * ds[skipped] * (summed[:, np.maximum(skipped - 1, 0), skipped] - summed[:, first, skipped])
    steps += ds[skipped] ** 2 * products[:, skipped, skipped]
    steps[:, :, 0] = 0
    square = np.cumsum(steps, axis=2)
    end_known = products[:, by[:, :, None], known[:, None]]
    explained = np.einsum("gnma,gnab->gnmb", of_known, inverse)
    before = np.maximum(square - np.einsum("gnmb,gnmb->gnm", explained, of_known), 0)
    shared = of_end - np.einsum("gnmb,gnmb->gnm", explained, end_known)
    own = products[:, by, by]
    new = own - np.einsum("gnma,gnab,gnmb->gnm", end_known, inverse, end_known, optimize=True)
    after = before - shared * shared / np.maximum(new, RIDGE * own + np.finfo(float).tiny)
    return before.sum(axis=0), np.maximum(after, 0).sum(axis=0)


def path_errors(
    gram: Gram, error_growth: Sequence[float], path: Sequence[int], order: int, per: str, corrected: bool = False
) -> tuple[float, ...]:
    """The error at the end of the run of the steps skipped after each computed one of a path, as ``edge_errors``."""
    errors = []
    groups: dict[int, list[int]] = {}
    path = [*path, gram.num_steps]
    for k in range(1, len(path)):
        groups.setdefault(min(k, order), []).append(k)
    for count, places in sorted(groups.items()):  # ascending in k too: only the first states are shorter
        known = [path[k - count : k][::-1] for k in places]
        gaps = [path[k] - path[k - 1] for k in places]
        found = edge_errors(gram, error_growth, known, max(gaps), per, corrected)
        errors += [float(row[gap - 1]) for row, gap in zip(found, gaps, strict=True)]
    return tuple(errors)


class Plans(Mapping[int, Plan]):
    """Plans by budget, each put together when it is asked for.

    Args:
        paths: the edges of each budget's path.
        end, error: [edges], the step that an edge leads to and the error of those it skips.
        last: how many of a path's edges, at its end, compute no step: a budget is one more than those that do.
    """

    def __init__(self, paths: UnitPaths, end: np.ndarray, error: np.ndarray, last: int = 0):
        self._paths, self._error, self._last = paths, error, last
        number = [*range(int(end.max(initial=0)) + 1)]
        self._end = np.array(number, object)[end]  # objects shared by all paths

    def __getitem__(self, budget: int) -> Plan:
        edges = self._paths[budget - 1 + self._last]
        return Plan((0, *self._end[edges[: budget - 1]].tolist()), tuple(self._error[edges].tolist()))

    def __contains__(self, budget: object) -> bool:
        return type(budget) is int and budget - 1 + self._last in self._paths

    def __iter__(self) -> Iterator[int]:
        return (count + 1 - self._last for count in self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def plans(
    gram: Gram, error_growth: Sequence[float], *, order: int = 2, max_gap: int = MAX_GAP,
    per: str = "channel", objective: str = "leximax", corrected: bool = False,
) -> Mapping[int, Plan]:  # fmt: skip
    """The best path of every budget, the number of computed steps, step 0 among them.

    The last step is one like any other: that of a solver which ends with a tiny step is hardly worth computing.
    The error of skipping steps depends on the last ``order`` computed steps, so those are the nodes of the graph, whose
    best paths ``vaccel.planning.schedules.solve_units`` finds exactly, all in one pass.

    Args:
        error_growth: [T], the factor by which an error of the latents that enter a step has grown at the end.
        order: K, the number of velocities that a forecast combines.
        max_gap: largest distance, in steps, from one computed step to the next.
        corrected: whether computed steps make up for the errors of the forecasts before them (``solver_weights``).

    Raises ``ValueError`` for settings out of range, or with which there would be too many ways through the steps.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, got {objective!r}")
    if not 1 <= order <= MOST_ORDER or max_gap < 1 or len(error_growth) != gram.num_steps:
        raise ValueError(
            f"order and max_gap must be >= 1, order at most {MOST_ORDER}, and error_growth needs {gram.num_steps} "
            f"values, one for each step: got {order}, {max_gap} and {len(error_growth)} values"
        )
    max_gap = min(max_gap, max(gram.num_steps - 1, 1))
    try:
        check_size(gram.num_steps, gram.num_steps * max_gap**order)
    except ValueError as error:
        raise ValueError(f"order={order} and max_gap={max_gap}: {error}; make one of them smaller") from None
    nodes, last = _nodes(gram.num_steps, order, max_gap), gram.num_steps - 1
    errors = np.empty((len(nodes), max_gap))
    counts = (nodes >= 0).sum(axis=1)
    for count in np.unique(counts):
        group = counts == count
        errors[group] = edge_errors(gram, error_growth, nodes[group, :count], max_gap, per, corrected)
    if last:
        errors[0, last:] = np.inf  # one step alone is no run
    start, gap = np.nonzero(np.isfinite(errors))
    step = nodes[start, 0] + gap + 1  # which is computed next
    following = np.column_stack([step, nodes[start, : order - 1]])
    end = np.searchsorted(_keys(nodes, last + 1), _keys(following, last + 1))
    end[step > last] = len(nodes)  # the end of the run
    error = errors[start, gap]
    weights = error * error if objective == "squares" else error
    paths = solve_units(
        len(nodes) + 1, start, end, weights, np.array([len(nodes)]),
        objective="sum" if objective == "squares" else objective,
    )  # fmt: skip
    return Plans(paths, step, error, last=1)


def _keys(nodes: np.ndarray, last: int) -> np.ndarray:
    """One number a node [n], ascending as the nodes do."""
    keys = np.zeros(len(nodes), np.int64)
    for column in nodes.T:
        keys = keys * (last + 2) + column + 1
    return keys


def solver_weights(
    gram: Gram, path: Sequence[int], response: Sequence[Sequence[float]], *, order: int = 2, per: str = "channel",
    reach: float = math.inf, given: Sequence[np.ndarray | None] = (),
) -> dict[int, np.ndarray]:  # fmt: skip
    """Weights, by step, of the velocity that the solver receives along a path, so that its latents follow a full run's.

    At a skipped step the weights [order, bands, channels] combine the velocities computed last.  At a computed step
    that follows skipped ones they are a correction, [CORRECTING, bands, channels], of that velocity itself and those
    before it: it reveals the errors of the forecasts before it, and the solver's input makes up for them.  Each step's
    weights minimise the norm of the error of the latents

        D_(i+1) = sum_(m <= i) W[i+1, m] (c_m - v_m),

    where c_m is the velocity that the solver receives at step m and W its response (``Flow.response``), which covers
    multistep solvers too.

    Args:
        path: the computed steps.
        response: W [T + 1][T].
        order: K, the number of velocities that a forecast combines.
        reach: a computed step is left uncorrected where the levels skipped before it are more than so many times its
            own change of the level: what its velocity says is then multiplied by as much.
        given: the weights that the first steps were given, None for a computed velocity as it is; those of the steps
            after them are found, and make up for what these have left.
    """
    products, response, steps = gram.grouped(per), np.array(response), gram.num_steps
    groups = len(products)
    errors = np.zeros((steps, groups, steps))  # c_m - v_m, as combinations of all velocities
    computed: list[int] = []
    found = {}
    for i in range(steps):
        full = i in path
        computed = [i, *computed] if full else computed
        if i < len(given):
            if given[i] is not None:
                used = computed[: len(given[i])]
                errors[i][:, used] += np.broadcast_to(given[i].reshape(len(used), -1).T, (groups, len(used)))
                errors[i][:, i] -= 1
            continue
        carried = np.einsum("m,mgt->gt", response[i + 1, :i], errors[:i]) / response[i + 1, i]
        if full and (not carried.any() or _beyond(gram.widths, computed, reach)):
            continue
        target = -carried
        if not full:
            target[:, i] += 1
        used = computed[: CORRECTING if full else order]
        own = _ridged(products[:, used][:, :, used])
        solved = np.linalg.solve(own, np.einsum("gkt,gt->gk", products[:, used], target)[..., None])[..., 0]
        errors[i][:, used] += solved
        if full:
            solved[:, 0] += 1
        else:
            errors[i][:, i] -= 1
        found[i] = gram.expanded(solved, per)
    return found


def _beyond(widths: np.ndarray, computed: Sequence[int], reach: float) -> bool:
    """Whether the levels skipped before the newest computed step are more than ``reach`` times its own change."""
    skipped = widths[computed[1] + 1 : computed[0]] if len(computed) > 1 else widths[:0]
    return bool(abs(skipped.sum()) > reach * abs(widths[computed[0]]))


@torch.no_grad()
def inner_products(velocities: torch.Tensor, axis: int | Channels, bands: int) -> np.ndarray:
    """The inner products of one run's velocities [T, B, ...]: [bands, channels, T, T] in fp64, mean over the B clips.

    Computed one channel at a time, so that no second trajectory is held; deterministic.

    Args:
        axis: the channel axis of one velocity [B, ...], or where the channels of each of its tensors lie.
        bands: 2 to separate low from high spatial frequencies, else 1.
    """
    channels = axis if isinstance(axis, Channels) else Channels(axis)
    apart = [_inner_products(tensor, at, bands) for tensor, at in channels.tensors(velocities)]
    return np.concatenate(apart, axis=1)


def _inner_products(velocities: torch.Tensor, axis: int, bands: int) -> np.ndarray:
    """Of one tensor [T, B, ...], whose channels ``axis`` counts."""
    trajectory = velocities.movedim(axis, 0)  # [channels, T, B, ...]
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
