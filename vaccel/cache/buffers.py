"""Storage that caches live in: allocated once, owned here, never a reference to somebody else's tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from .parked import Parked, Parking, store
from .readings import Reading

#: What parked buffers in host memory are counted under.
HOST = "host"
#: A mode for tests: every buffer is full of NaN until a run writes it, so that reading what nobody wrote shows.
POISONED = os.environ.get("VACCEL_POISON") == "1"


class Buffers:
    """Named tensors with a stable address as long as shape, dtype and device stay.

    Contents are copied in, so no in-place kernel of a pipeline can change what was cached.  What a buffer *means*
    (whether it holds anything of the current run) is for the run to know: a fresh run trusts none of it.
    """

    def __init__(self, parking: Parking | None = None) -> None:
        #: Where hidden states lie between calls.
        self.parking = parking or Parking()
        self._parked: dict[Hashable, Parked] = {}
        self._away: set[Hashable] = set()  # the keys of those in host memory, away from the models' device
        self._errors: dict[torch.device, torch.Tensor] = {}
        self._tensors: dict[Hashable, torch.Tensor] = {}
        self._pinned: dict[Hashable, torch.Tensor] = {}
        self._constants: dict[Hashable, torch.Tensor] = {}
        self._fits: dict[Hashable, Hashable] = {}
        #: How often a buffer has been put elsewhere: as long as it stays, every address given out is good.
        self.moves = 0
        #: (key, values, rule) -> the values that count, where several ranks decide together.
        self.agree: Callable[[Hashable, list, str], list] | None = None

    def empty(
        self, key: Hashable, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str, *, pin: bool = False
    ) -> torch.Tensor:
        """The buffer ``key``, allocated on first use and whenever shape, dtype or device change; contents undefined."""
        t = self._tensors.get(key)
        if t is None or t.shape != torch.Size(shape) or t.dtype != dtype or t.device != torch.device(device):
            with torch.inference_mode(False):  # an inference tensor could not be written to in a later no_grad run
                t = torch.empty(tuple(shape), dtype=dtype, device=device, pin_memory=pin)
            if POISONED:
                _poison(t)
            self.moves += key in self._tensors
            self._tensors[key] = t
        return t

    def like(self, key: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        """The buffer ``key`` with ``tensor``'s shape, dtype and device; contents undefined."""
        t = self._tensors.get(key)
        if t is not None and t.shape == tensor.shape and t.dtype == tensor.dtype and t.device == tensor.device:
            return t
        return self.empty(key, tensor.shape, tensor.dtype, tensor.device)

    def large(self, key: Hashable, tensor: torch.Tensor) -> torch.Tensor | Parked:
        """The buffer ``key`` for hidden states like ``tensor``, parked where that is wanted; contents undefined."""
        if not self.parking:
            return self.like(key, tensor)
        place, dtype = self.parking.place(tensor.device), self.parking.dtype or tensor.dtype
        known = self._parked.get(key)
        fits = known is not None and known.shape == tensor.shape and known.values.dtype == dtype
        if not fits or known.values.device != place:
            known = self._parked[key] = self._park(key, tensor, place, dtype)
        return known

    def _park(self, key: Hashable, tensor: torch.Tensor, place: torch.device, dtype: torch.dtype) -> Parked:
        name = key if isinstance(key, tuple) else (key,)
        pin = place.type == "cpu" and tensor.is_cuda  # which alone is copied to beside other work
        scales = error = None
        values = self.empty((*name, "parked"), tensor.shape, dtype, place, pin=pin)
        if dtype.itemsize == 1:
            scales = self.empty((*name, "scales"), (*tensor.shape[:-1], 1), torch.float32, place, pin=pin)
        if self.parking.device is not None:
            self._away |= {(*name, "parked"), (*name, "scales")}
        if dtype != tensor.dtype and dtype.itemsize <= tensor.dtype.itemsize:
            error = self._errors.get(tensor.device)
            if error is None:
                with torch.inference_mode(False):
                    error = self._errors[tensor.device] = torch.zeros(1, device=tensor.device)
        return Parked(values, scales, error, [])

    def lost(self) -> str:
        """What parking has cost since a run began; empty where nothing is lost."""
        error = max((float(error) for error in self._errors.values()), default=0.0)
        kept = str(self.parking.dtype).removeprefix("torch.")
        return f"hidden states kept in {kept}: relative L2 error up to {error:.2g}" if error else ""

    def constant(self, key: Hashable, device: torch.device | str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What ``make`` gives, made and brought to the device once; a few numbers, so not counted as held."""
        t = self._constants.get((key, device))
        if t is None:
            with torch.inference_mode(False):
                t = self._constants[key, device] = make().to(device)
        return t

    def of(self, key: Hashable) -> torch.Tensor:
        """The buffer ``key`` as it stands.  Raises ``KeyError`` if it was never allocated."""
        return self._tensors[key]

    def held(self, key: Hashable) -> Any:
        """The buffer ``key`` as it stands, parked or not; None if it was never allocated."""
        parked = self._parked.get(key)
        return self._tensors.get(key) if parked is None else parked

    def made(self, key: Hashable, fits: Hashable) -> None:
        """Says what kind of call the buffers under ``key`` were made for, by what entered a model's blocks."""
        self._fits[key] = fits

    def fit(self, key: Hashable, fits: Hashable) -> bool:
        """Whether the buffers under ``key`` were made for such calls: then they need not be made by one."""
        return self._fits.get(key) == fits

    def keep(self, key: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        """Copies ``tensor`` into the buffer ``key`` and returns the buffer."""
        return store(self.like(key, tensor), tensor)

    def read(self, key: Hashable, tensor: torch.Tensor, rule: str = "largest") -> Reading:
        """``tensor``'s values for the host to read later; the last reading of ``key`` must have been read by now.

        Whatever a decision depends on is read here: where several ranks share the model, all of them read the same, of
        each number the "largest" that one of them has, or by ``rule`` the "mean".
        """
        pinned = self._pinned.get(key)
        if tensor.is_cuda and (pinned is None or pinned.shape != tensor.shape or pinned.dtype != tensor.dtype):
            pinned = self._pinned[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        agree = self.agree
        return Reading(tensor, pinned, None if agree is None else lambda values: agree(key, values, rule))

    def begin(self) -> None:
        """A run begins: what is here belongs to earlier ones."""
        for error in self._errors.values():
            error.zero_()
        if POISONED:
            for t in self._tensors.values():
                _poison(t)

    @property
    def nbytes(self) -> int:
        """Bytes held on the models' device."""
        return sum(t.numel() * t.element_size() for key, t in self._tensors.items() if key not in self._away)

    def sizes(self) -> dict[str, int]:
        """Bytes by the names that their keys begin with, which are those of stores, signals and policies; under "host"
        those in host memory."""
        found: dict[str, int] = {}
        for key, t in self._tensors.items():
            name = HOST if key in self._away else str(key[0] if isinstance(key, tuple) else key)
            found[name] = found.get(name, 0) + t.numel() * t.element_size()
        return found

    def clear(self) -> None:
        self.moves += 1
        self._tensors.clear()
        self._constants.clear()
        self._fits.clear()
        self._pinned.clear()
        self._parked.clear()
        self._away.clear()
        self._errors.clear()


def _poison(t: torch.Tensor) -> None:
    t.fill_(float("nan") if t.is_floating_point() else torch.iinfo(t.dtype).min)
