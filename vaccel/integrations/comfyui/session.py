"""One sampling of a patched model: from the call of ComfyUI's sampler to its end."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from ...cache import Buffers
from ...engine.run import Run
from ...models.call import Stage
from .answers import AtOutput, Form, Forward, Rows, listed
from .choosing import Choice, Windowed, chosen
from .journal import Record
from .levels import flow_of, normaliser, points
from .rehearsal import Rehearsal, as_listed, rehearsed

logger = logging.getLogger("vaccel")
#: A call's sigma is a rehearsed one where it differs by no more than this share of it.
NEAR = 2e-5


class Session:
    """The state of a sampling.  Conditions are told apart by what ComfyUI calls them, calls by their sigma.

    Args:
        choice: what the node asks for.
        sampler, sigmas, seed: what the guider was asked to sample with.
        shape: of the noise.
        record: what is told of the run.
    """

    def __init__(
        self, choice: Choice, sampler: Any, sigmas: torch.Tensor, seed: int | None, shape: Sequence[int], record: Record
    ):
        self.choice, self.sampler, self.sigmas, self.seed = choice, sampler, sigmas, seed
        self.record, self.buffers, self.stage = record, Buffers(), Stage(0, AtOutput())
        self.elements = torch.Size(shape[2:]).numel()
        self.run: Run | None = None
        self.plan: Rehearsal | None = None
        self.index, self.sigma, self.timestep = -1, 0.0, None
        self.off = False  # from now on everything is computed
        self.branches: dict[Hashable, int] = {}
        self.present: dict[int, int] = {}  # by branch, the last call that it was part of
        self.forms: dict[Hashable, Form] = {}
        self.letters: list[str] = []
        self._begin_call()

    def __deepcopy__(self, memo: dict) -> Session:
        return self

    def _begin_call(self) -> None:
        self.times: collections.Counter[Hashable] = collections.Counter()
        self.conditions: dict[int, Any] = {}  # what stands for a prompt in this call, by its number

    # -- the run -----------------------------------------------------------------------------------------------------

    def begins(self, guider: Any, timestep: torch.Tensor) -> None:
        """The sampler asks for a prediction: the next call of its plan begins."""
        self.timestep, self.sigma = timestep, float(timestep.flatten()[0])
        self._begin_call()
        self.letters.append("")
        if self.off:
            return
        if self.plan is None:
            self._open(guider)
        if not self.off:
            self.index = self._located()

    def _located(self) -> int:
        """The next planned call at this call's sigma."""
        for index in range(self.index + 1, len(self.plan.sigmas)):
            if abs(self.plan.sigmas[index] - self.sigma) <= NEAR * max(self.sigma, 1e-3):
                return index
        self.all_from_here(f"the sampler asks at sigma {self.sigma:.6g}, which was not foreseen")
        return self.index

    def _open(self, guider: Any) -> None:
        """Finds out how the run will go, and how much of it to compute."""
        sampling = guider.inner_model.model_sampling
        self.plan = plan = rehearsed(self.sampler, self.sigmas, guider, self.seed) or as_listed(self.sigmas)
        if not plan.tried:
            self.say("this sampler cannot be tried beforehand: it is taken to ask once at each listed sigma")
            if self.choice.aim == "psnr":
                self.all_from_here("nothing can be expected of a run whose calls are not known")
                return
        try:
            last = normaliser(sampling, float(self.sigmas[-1]))[1]
            flow = flow_of(points(sampling, plan.sigmas), last, stochastic=plan.stochastic, response=plan.response)
            outside = self._outside(sampling)
            found = chosen(self.choice, flow, outside, stochastic=plan.stochastic)
            run = Run(found.method.outside(), flow.num_steps, self.buffers, flow=flow)
        except (ValueError, TypeError, AttributeError, RuntimeError, ZeroDivisionError) as error:
            self.all_from_here(f"nothing can be made of this model's or sampler's noise levels: {error}")
            return
        for note in found.notes:
            self.say(note)
        if outside:
            run.policy = Windowed(run.policy, outside)
        self.record.expected = found.expected if plan.tried else None
        self.run, self.record.trace = run, run.trace

    def _outside(self, sampling: Any) -> set[int]:
        """The calls outside the part of sampling in which some may be skipped."""
        first, end = (float(sampling.percent_to_sigma(p)) for p in (self.choice.start_percent, self.choice.end_percent))
        end = -1.0 if self.choice.end_percent >= 1 else end
        return {i for i, sigma in enumerate(self.plan.sigmas) if sigma > first or sigma <= end}

    def all_from_here(self, reason: str) -> None:
        """Nothing stands in any more: this is said once."""
        if not self.off:
            self.off = True
            done = sum(map(bool, self.letters))
            self.say(f"computed in full{f' from call {done} on' if done else ''}: {reason}")
            self.buffers.clear()

    def say(self, note: str) -> None:
        if self.record.say(note):
            logger.info("vaccel: %s", note)

    def close(self, *, whole: bool) -> None:
        """The sampling is over; one that was interrupted (not ``whole``) is told of as far as it went."""
        record = self.record
        if whole and not self.off and not any(self.letters):
            self.say("computed in full: no forward was seen; is the network compiled as a whole, wrappers included?")
        record.timeline, record.finished = "".join(letter or "F" for letter in self.letters), whole
        if record.computed_calls == len(record.timeline):
            record.expected = None
        if self.run is not None:
            if whole and not self.off:
                self.run.close()
            for note in self.run.trace.notes:
                record.say(note)
            reasons = {step.reason for step in self.run.trace.steps if step.reason}
            for reason in sorted(reasons):
                record.say(reason)
        self.run = None
        self.off = True
        self.buffers.clear()
        self.branches.clear()

    # -- a forward ---------------------------------------------------------------------------------------------------

    def forward(self, make: Callable[[], Any], x: Any, options: dict[str, Any]) -> Any:
        """The network's answer to ``x``, or what stands in for it.

        Args:
            make: calls the network.
            options: ComfyUI's ``transformer_options`` of the forward.
        """
        given, uuids = listed(x), options.get("uuids")
        count = len(uuids or (None,))
        forward = Forward(make, given or [])
        if not self.off and (why := self._unfit(given, uuids, options)):
            self.all_from_here(why)
        answer = forward.answer() if self.off else self._answered(forward, options)
        self.record.forwards += count
        self.record.computed += count * forward.made
        if self.letters and (forward.made or not self.letters[-1]):
            self.letters[-1] = "F" if forward.made else self.run.action.letter
        return answer

    def _unfit(self, given: list[torch.Tensor] | None, uuids: Any, options: dict[str, Any]) -> str:
        """Why nothing can stand in for a forward; "" where something can."""
        if given is None or not uuids or len(given[0]) % len(uuids):
            return "a forward does not say which conditions its rows are of"
        if self.run is None or self.index < 0:
            return "a forward comes before the sampler has asked for it"
        sigmas = options.get("sigmas")
        # Mostly it is the same tensor: then no device has to be asked.
        other = sigmas is not None and sigmas is not self.timestep
        if other and abs(float(sigmas.flatten()[0]) - self.sigma) > NEAR * max(self.sigma, 1e-3):
            return "a forward is at another noise level than the sampler has asked for"
        if "context_window" in options:
            return "context windows: parts of the latents take turns"
        if len(given) == 1 and given[0][0, 0].numel() < self.elements:
            return "tiles or areas: a forward is of a part of the latents"
        for number, uuid in zip(options.get("cond_or_uncond", range(len(uuids))), uuids, strict=False):
            if self.conditions.setdefault(number, uuid) != uuid:
                return "several conditions for one prompt (areas, masks or combined ones)"
        return ""

    def _answered(self, forward: Forward, options: dict[str, Any]) -> Any:
        """The answer of a forward, condition by condition."""
        given, uuids = forward.given, options["uuids"]
        form = self._form(forward)
        if form is None:
            self.all_from_here("the model's answer has another shape than what it was given")
            return forward.answer()
        size, x = len(given[0]) // len(uuids), form.latents(given)
        parts = []
        for place, branch in enumerate(self._numbered(options)):
            rows = slice(place * size, (place + 1) * size)
            parts.append((branch, place, Rows(forward, form, rows, x[rows])))
        made: list[Any] = [None] * len(parts)
        for branch, place, rows in sorted(parts, key=lambda part: part[0]):
            made[place] = self._called(branch, rows)
        if forward.made and all(_own(forward, form, part[2], out) for part, out in zip(parts, made, strict=True)):
            return forward.answer()
        return form.answer(made[0] if len(made) == 1 else torch.cat(made))

    def _form(self, forward: Forward) -> Form | None:
        """How the answers to such inputs lie; the first of them is computed, to see it."""
        key = tuple(tuple(t.shape[1:]) for t in forward.given)
        if key not in self.forms:
            found = Form.of(forward.answer(), forward.given)
            if found is None:
                return None
            self.forms[key] = found
        return self.forms[key]

    def _numbered(self, options: dict[str, Any]) -> list[int]:
        """The branch of every condition of a forward.

        One that comes twice in a call (guidance by a perturbed model) is another branch the second time.
        """
        uuids = options["uuids"]
        numbers = list(options.get("cond_or_uncond", range(len(uuids))))
        keys = []
        for number, uuid in zip(numbers, uuids, strict=True):
            self.times[number, uuid] += 1
            keys.append((number, uuid, self.times[number, uuid]))
        for key in sorted(keys, key=lambda key: (key[0], key[2])):
            self.branches.setdefault(key, len(self.branches))
        return [self.branches[key] for key in keys]

    def _called(self, branch: int, rows: Rows) -> torch.Tensor:
        run, computed = self.run, self.run.computed
        absent = branch in self.present and computed and self.present[branch] < computed[0] != self.index
        if absent and not all(store.crosses for store in run.stores):
            # What it has left is older than what the others have: it begins anew.
            run.calls_bound.pop((0, branch), None)
        self.present[branch] = self.index
        return run.call(self.index, self.stage, rows, rows.x, branch=branch)


def _own(forward: Forward, form: Form, rows: Rows, output: torch.Tensor) -> bool:
    """Whether an output is the model's own."""
    own = forward.rows(form, rows.rows)
    return output.data_ptr() == own.data_ptr() and output.shape == own.shape
