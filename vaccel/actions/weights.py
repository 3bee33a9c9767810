"""What a forecast takes of each remembered velocity."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch


class Weights:
    """Weights of remembered velocities: [K, bands, channels], newest first, fp32.

    One band: of the velocity.  Two: of its low spatial frequencies and of the others.  One channel: of all alike.
    Compares and hashes by value.  Raises ``ValueError`` for another shape, or for what is no number.
    """

    __slots__ = ("_hash", "count", "tensors", "values")

    def __init__(self, values: Sequence[Any] | np.ndarray):
        values = np.array(values, dtype=np.float32)
        if values.ndim != 3 or 0 in values.shape or values.shape[1] > 2 or not np.isfinite(values).all():
            raise ValueError(f"weights must be finite, [K, 1 or 2 bands, channels], got shape {values.shape}")
        values.flags.writeable = False
        self.values, self._hash = values, hash((values.shape, values.tobytes()))
        self.count = len(values)
        self.tensors: dict[Hashable, torch.Tensor] = {}

    @classmethod
    def plain(cls, *weights: float) -> Weights:
        """One number a remembered velocity."""
        return cls([[[w]] for w in weights])

    def coefficients(
        self, device: torch.device, scale: tuple[float, float] | None = None, *, against: bool = False
    ) -> torch.Tensor:
        """[terms, 1, channels or 1], fp32, as ``ops.linear_combination`` takes them; made once a device.

        Terms are each velocity, followed by its low frequencies where there are two bands.

        Args:
            scale: how much of the prediction and of the latents a velocity is (``planning.flow.Flow.scales``): the
                combination is then turned into a prediction, and the latents are its last term.
            against: the newest velocity comes first, with weight 1, and the others are subtracted from it.
        """
        key = (device, scale, against)
        kept = self.tensors.get(key)
        if kept is None:
            with torch.inference_mode(False):
                kept = self.tensors[key] = self._made(scale, against).to(device)
        return kept

    def _made(self, scale: tuple[float, float] | None, against: bool) -> torch.Tensor:
        # Two bands: low a + high b = velocity b + low (a - b), so high frequencies are never stored.
        values = torch.from_numpy(self.values.copy()).double()
        if values.shape[1] == 2:
            low, high = values.unbind(1)
            values = torch.stack([high, low - high], dim=1)
        values = values.flatten(0, 1)
        if against:
            values = torch.cat([torch.ones_like(values[:1]), -values])
        if scale is not None:
            of_prediction, of_x = scale
            values = torch.cat([values, torch.full_like(values[:1], -of_x)]) / of_prediction
        return values[:, None].float()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Weights({self.values.tolist()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Weights, (self.values,)
