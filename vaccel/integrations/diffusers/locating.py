"""Which step of its loop a call belongs to, by what the pipeline says of it and never by counting calls.

The ways, in order: the address of the call's own timestep in a scheduler's; that of the pipeline's
``_current_timestep``; the step that the scheduler says it is at; the values of both timesteps, scaled or reversed if
need be.  Addresses are certain.  The others are believed until two calls contradict each other: another timestep at the
same step, or the same one at another step.  A loop whose timesteps are vectors that no scheduler holds (diffusion
forcing) is followed by their changes, where the pipeline says how many there will be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ...models.denoisers import components_of, parts_of


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a call is.

    Attributes:
        timesteps: the scheduler's, which tell loops apart.
        position: the call's step among them.
        total: how many steps the loop has, counted from the first of ``timesteps``.
        own: whether the model takes the timestep as it stands there.
        scheduler: whose they are; None where the loop has others.
        current: whether it was the address of the pipeline's ``_current_timestep`` that told.
    """

    timesteps: Any
    position: int
    total: int
    own: bool = False
    scheduler: Any = None
    current: bool = False


class Locator:
    """Of one call of a pipeline."""

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self._schedulers: list[Any] | None = None
        self._before: list[Any] = []
        self._struck: set[str] = set()
        self._addressed: Place | None = None  # of the last call that was located by address
        self._last: tuple[Any, int, Any] | None = None  # (timesteps, position, value) of the last call
        self._values: tuple[Any, torch.Tensor] | None = None
        self._map: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._changes: tuple[Any, Any, int] | None = None
        # Timesteps that were there before the call: of its loops only where no others are.
        self._before = [scheduler.timesteps for scheduler in self.schedulers]
        self._schedulers = None  # the call may put others in their places before its loop

    @property
    def schedulers(self) -> list[Any]:
        """Those that the pipeline has, its ``scheduler`` first; of a cascade those first that this call has set."""
        if self._schedulers is None:
            parts, first = parts_of(self.pipe).values(), getattr(self.pipe, "scheduler", None)
            within = [part for pipe in parts for part in components_of(pipe).values()]  # of pipelines that it calls
            found = [s for s in (*parts, *within) if hasattr(s, "step") and s is not first]
            self._schedulers = [*([first] if first is not None else []), *{id(s): s for s in found}.values()]
        known = [s for s in self._schedulers if getattr(s, "timesteps", None) is not None]
        if len(known) > 1:
            known.sort(key=lambda s: any(s.timesteps is before for before in self._before))
        return known

    def find(self, t: Any, *, converts: bool, at: int | None = None) -> Place | None:
        """The place of a call with timestep ``t``; None where nothing says it.

        Args:
            at: the position of the call before, in a loop whose calls are located by address.
            converts: whether the pipelines of this family convert a timestep before the model gets it.
        """
        current = getattr(self.pipe, "_current_timestep", None)
        for scheduler in self.schedulers:
            for said, own in ((t, getattr(t, "ndim", 0) < 2), (current, converts)):
                position = by_address(scheduler.timesteps, said)
                if position is not None:
                    self._addressed = self._place(scheduler, position, own=own, current=said is not t)
                    return self._addressed
        if at is not None and self._addressed is not None:
            self._addressed = dataclasses.replace(self._addressed, position=at)
        return self._same_step(t) or self._by_what_is_said(t, current)

    def _same_step(self, t: Any) -> Place | None:
        """Where the step's other calls are located by address: the place of the last one.

        Such a call is given another timestep on purpose (UniDiffuser: what is not denoised is at the last one).
        """
        last = self._addressed
        if last is None or last.timesteps is not last.scheduler.timesteps or last.position == last.total - 1:
            return None
        return None if self._moved(last, values_of(t)) else dataclasses.replace(last, own=False)

    def _by_what_is_said(self, t: Any, current: Any) -> Place | None:
        value = values_of(t) if t is not None else values_of(current)
        if self._changes or self._longer():
            return self._by_change(value)
        ways = (
            ("the scheduler's step_index", self._by_index),
            ("the value of _current_timestep", lambda: self._by_value(current)),
            ("the value of its timestep", lambda: self._by_value(t)),
            ("the changes of its timestep", lambda: self._by_change(value)),
        )
        for name, way in ways:
            if name in self._struck:
                continue
            place = way()
            if place is None:
                continue
            if self._contradicts(place, value):
                self._struck.add(name)
                continue
            self._last = place.timesteps, place.position, value
            return place
        return None

    def _contradicts(self, place: Place, value: Any) -> bool:
        if self._last is None or value is None or self._last[2] is None or self._last[0] is not place.timesteps:
            return False
        _, position, before = self._last
        if position == place.position:
            return value != before and self._moved(place, value)
        if value != before or place.scheduler is None:
            return False
        values = self._numbers(place.timesteps)
        return bool(values[position] != values[place.position])  # solvers of second order have a timestep twice

    def _moved(self, place: Place, value: Any) -> bool:
        """Whether a value is that of the step behind this place: its way stands still then.

        Calls of one step may have other timesteps (UniDiffuser asks at the last one for what is not guided).
        """
        if isinstance(value, tuple) or value is None or place.scheduler is None:
            return True
        after = self._position_of(place.timesteps, value, torch.float32, after=place.position + 1)
        return after == place.position + 1

    # -- ways --------------------------------------------------------------------------------------------------------

    def _by_index(self) -> Place | None:
        for scheduler in self.schedulers:
            position = by_scheduler(scheduler)
            if position is not None and position < len(scheduler.timesteps):
                return self._place(scheduler, position)
        return None

    def _by_value(self, said: Any) -> Place | None:
        value = values_of(said)
        if isinstance(value, tuple):  # one a token, those of given frames 0
            some = {v for v in value if v != 0}
            value = some.pop() if len(some) == 1 else None
        if value is None:
            return None
        rounding = getattr(said, "dtype", torch.float32)
        for scheduler in self.schedulers:
            position = self._position_of(scheduler.timesteps, value, rounding)
            if position is not None:
                return self._place(scheduler, position)
        return self._by_noise_level(value)

    def _by_noise_level(self, value: float) -> Place | None:
        """A model may be given the scheduler's sigma in the timestep's place."""
        for scheduler in self.schedulers:
            sigmas = getattr(scheduler, "sigmas", None)
            if isinstance(sigmas, torch.Tensor) and len(sigmas) in (
                len(scheduler.timesteps),
                len(scheduler.timesteps) + 1,
            ):
                near = (sigmas.double().cpu() - value).abs() <= 1e-5 * abs(value)
                if near.any():
                    return self._place(scheduler, int(near.nonzero()[0]))
        return None

    def _position_of(self, timesteps: Any, value: float, rounding: torch.dtype, after: int | None = None) -> int | None:
        values = self._numbers(timesteps)
        eps = torch.finfo(rounding).eps if rounding.is_floating_point else 0.0
        for convert in [self._map] if self._map is not None else MAPS:
            converted = convert(values)
            off = (converted - value).abs()
            near = (off <= max(4 * eps, 1e-6) * max(abs(value), 1e-3)).nonzero().flatten().tolist()
            if near:
                self._map = convert
                if after is None:
                    after = self._last[1] if self._last is not None and self._last[0] is timesteps else 0
                return next((n for n in near if n >= after), near[0])
        return None

    def _longer(self) -> bool:
        """Whether the loop has more steps than any scheduler has timesteps."""
        total = getattr(self.pipe, "_num_timesteps", None)
        vectors = getattr(getattr(self.pipe, "_current_timestep", None), "ndim", 0) > 0
        return vectors and isinstance(total, int) and all(total > len(s.timesteps) for s in self.schedulers)

    def _by_change(self, value: Any) -> Place | None:
        total = getattr(self.pipe, "_num_timesteps", None)
        followed = self._changes or isinstance(value, tuple) or self._longer()
        if not followed or not isinstance(total, int) or total < 1:
            return None
        key, last, position = self._changes or (object(), value, self._last[1] if self._last else 0)
        if self._changes is None and self._last is not None:
            position += value != self._last[2]
        elif value != last:
            position += 1
        if position >= total:
            return None
        self._changes = key, value, position
        return Place(key, position, total)

    def _place(self, scheduler: Any, position: int, *, own: bool = False, current: bool = False) -> Place:
        timesteps = scheduler.timesteps
        return Place(timesteps, position, len(timesteps), own, scheduler, current)

    def begun(self, place: Place) -> Place:
        """The place where a loop begins, with as many steps as it will have: some leave out the last timestep."""
        steps = place.total - place.position
        left_out = steps > 1 and getattr(self.pipe, "_num_timesteps", None) == steps - 1
        return dataclasses.replace(place, total=place.total - 1) if left_out else place

    def _numbers(self, timesteps: Any) -> torch.Tensor:
        """Timesteps as numbers on the host, read once for each loop."""
        if self._values is None or self._values[0] is not timesteps:
            self._values = timesteps, torch.as_tensor(timesteps).detach().double().cpu()
        return self._values[1]


#: How pipelines convert a timestep before the model gets it.
MAPS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda t: t,
    lambda t: t / 1000,
    lambda t: 1 - t / 1000,
    lambda t: 1000 - t,
    lambda t: t * 1000,
    lambda t: 1 - t,
    lambda t: t + 1,
)


def by_address(timesteps: Any, t: Any) -> int | None:
    """Where ``t`` lies in ``timesteps``: without a sync; None if it is no view of them."""
    if not isinstance(t, torch.Tensor) or not isinstance(timesteps, torch.Tensor) or t.dtype != timesteps.dtype:
        return None
    offset = t.data_ptr() - timesteps.data_ptr()
    size = timesteps.element_size()
    return offset // size if 0 <= offset < size * len(timesteps) else None


def by_scheduler(scheduler: Any) -> int | None:
    """The index of the step that the scheduler makes next; None where it does not say."""
    index = getattr(scheduler, "step_index", None)
    if index is None:
        index = getattr(scheduler, "begin_index", None)
        return (index or 0) if hasattr(scheduler, "step_index") else None
    return int(index)


def values_of(t: Any) -> Any:
    """What a timestep says: one number, the different ones in order where there are several, None for nothing."""
    if t is None:
        return None
    try:
        flat = torch.as_tensor(t).detach().double().flatten()
    except (TypeError, ValueError, RuntimeError):
        return None
    if not flat.numel():
        return None
    if flat.numel() == 1 or bool((flat == flat[0]).all()):
        return float(flat[0])
    return tuple(flat.unique_consecutive().tolist())
