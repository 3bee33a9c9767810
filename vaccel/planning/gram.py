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
from collections.abc import Sequence

import numpy as np
import torch

from ..cache.frequencies import low_frequencies
from .channels import Channels

PER = ("tensor", "channel", "band", "channel, band")
#: Regularisation added to the diagonal, relative to its mean: two equal velocities then share their weight.
RIDGE = 1e-9
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


def blocks(products: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """products [G, T, T] at rows [n, a] and columns [n, b]: [G, n, a, b]."""
    return products[:, rows[:, :, None], columns[:, None, :]]


def _solved(products: np.ndarray, known: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Least-squares weights [G, n, K, m] of the steps [n, m] from the computed steps ``known`` [n, K]."""
    return np.linalg.solve(ridged(blocks(products, known, known)), blocks(products, known, steps))


def ridged(own: np.ndarray) -> np.ndarray:
    """Inner products [..., K, K] with the ridge on their diagonals; of velocities that are all zero, the identity.

    A channel that never moves is forecast with weights of zero then, as its inner products with all others are.
    """
    count = own.shape[-1]
    squares = np.trace(own, axis1=-2, axis2=-1)[..., None, None]
    return own + np.where(squares > 0, RIDGE * squares / count, 1.0) * np.eye(count)


def _residual_products(products: np.ndarray, known: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """R [n, m, m], summed over all groups."""
    cross = blocks(products, known, steps)
    explained = np.einsum("gnka,gnkb->nab", cross, _solved(products, known, steps))
    return blocks(products.sum(axis=0, keepdims=True), steps, steps)[0] - explained


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
        own = ridged(products[:, used][:, :, used])
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
