"""What is checked of every pipeline, against the pipeline's own loop with substituted outputs.

The reference knows nothing of vaccel: it exchanges the forward of the denoisers and tells steps apart by the timestep
that a call is given.  What it is compared with must be equal bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

import vaccel
from vaccel.actions import Action, Full, Output, Residual
from vaccel.cache import LastOutput, OutputResidual, Store
from vaccel.methods import Method, Policy, RunInfo, Step
from vaccel.methods.base import _METHODS

from .base import Case, generate

STEPS = 6
#: What the reference cannot tell, so that only whole runs are compared.
NOT_COMPARED = {
    "WanAnimate2ModularPipeline": "a step's first call is of another size where a segment begins: vaccel computes it",
    "UniDiffuserPipeline-joint": "the calls of one step have different timesteps",
}
TIMES = ("timestep", "t", "sigma", "timestep_ratio", "timesteps", "time", "r", "timestep_img", "decoder_noise_time")


@dataclasses.dataclass(frozen=True)
class EverySecond(Method):
    """Computes every second step, however many there are; the last output or the residual of it for the others."""

    id: ClassVar[str] = "test_every_second"

    residual: bool = False

    @property
    def stores(self) -> tuple[Store, ...]:
        return (OutputResidual(),) if self.residual else (LastOutput(),)

    @property
    def adaptive(self) -> bool:
        return False

    def start(self, run: RunInfo) -> Policy:
        return _EverySecond(self)


class _EverySecond(Policy):
    def __init__(self, method: EverySecond):
        self.other: Action = Residual("output") if method.residual else Output()

    def decide(self, step: Step) -> Action:
        return self.other if step.index % 2 else Full()


@dataclasses.dataclass(frozen=True)
class Everything(Method):
    """Computes every step."""

    id: ClassVar[str] = "test_everything"

    @property
    def adaptive(self) -> bool:
        return False

    def start(self, run: RunInfo) -> Policy:
        return _Everything()


class _Everything(Policy):
    def decide(self, step: Step) -> Action:
        return Full()


for _kind in (EverySecond, Everything):  # none of the library's
    _METHODS.pop(_kind.id)


@dataclasses.dataclass
class Seen:
    """What the reference saw of a run: the timestep of every call, and how many calls were computed."""

    times: list[Any] = dataclasses.field(default_factory=list)
    computed: int = 0


@contextlib.contextmanager
def substituted(case: Case, pipe: Any, seen: Seen, residual: bool | None) -> Iterator[None]:
    """Every second step's calls are given the last computed answers (or x + the last residuals).

    With None for ``residual`` everything is computed, and calls are only counted.
    """
    modules = [getattr(pipe, name) for name in case.denoisers]
    kept: dict[Any, Any] = {}
    loop: set[Any] = set()
    state: dict[str, Any] = {"time": None, "size": None, "step": -1, "order": 0, "module": None}

    def forward_of(module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(own).parameters)

        @functools.wraps(own)  # modular pipelines read the signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            inputs = {**dict(zip(names, args, strict=False)), **kwargs}
            time = _time_of(inputs)
            size, twice = _rows(inputs)[1:], _twice(pipe, time, seen.times)
            if time != state["time"] or size != state["size"] or twice:
                # The loop begins anew, or goes back, or another one goes on with larger latents.
                again = (time in loop and not twice) or (id(module) != state["module"] and _later(state["time"], time))
                state.update(module=id(module), time=time, size=size, step=0 if again else state["step"] + 1, order=0)
                if again:
                    kept.clear()
                    loop.clear()
                loop.add(time)
            else:
                state["order"] += 1
            seen.times.append(time)
            key = (id(module), state["order"], _rows(inputs))
            if residual is None or state["step"] % 2 == 0 or key not in kept:
                seen.computed += 1
                answer = own(*args, **kwargs)
                kept[key] = _copied(answer)
                if residual:
                    kept[key] = _mapped(answer, lambda t: t - _noisy(inputs, t))
                return answer
            if residual:
                return _mapped(kept[key], lambda t: _noisy(inputs, t) + t)
            return _copied(kept[key])

        return forward

    for module in modules:
        module.forward = forward_of(module, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _later(before: Any, time: Any) -> bool:
    """Whether another model begins a loop of its own: its noise is greater again."""
    return before is not None and time is not None and len(before) == len(time) == 1 and time[0] > before[0]


def _twice(pipe: Any, time: Any, before: list[Any]) -> bool:
    """Whether the solver has two steps at this timestep, and this is the second one (PNDM, Heun): one call each."""
    timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
    if not isinstance(timesteps, torch.Tensor) or time is None or len(time) != 1 or not before or before[-1] != time:
        return False
    again = (timesteps[1:] == timesteps[:-1]) & (timesteps[1:].double() == time[0])
    calls = before.count(before[0])  # of a step
    return bool(again.any()) and before.count(time) == calls


def _time_of(inputs: Mapping[str, Any]) -> Any:
    names = (*TIMES, *(name for name in inputs if "timestep" in name))
    time = next((inputs[name] for name in names if inputs.get(name) is not None), None)
    return None if time is None else tuple(torch.as_tensor(time).double().flatten().unique().tolist())


def _rows(inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """How many samples a call has, since guidance may end in mid-run, and how large they are unless they are tokens."""
    given = next((inputs[name] for name in ("hidden_states", "sample", "x") if inputs.get(name) is not None), ())
    if isinstance(given, torch.Tensor):
        return tuple(given.shape) if given.ndim > 3 else (len(given),)
    return len(given), *(given[0].shape if len(given) and isinstance(given[0], torch.Tensor) else ())


def _noisy(inputs: Mapping[str, Any], like: torch.Tensor) -> torch.Tensor:
    """The input that an answer of one tensor is about, where it has the answer's shape."""
    for name in ("hidden_states", "sample", "x"):
        given = inputs.get(name)
        if isinstance(given, torch.Tensor) and given.shape == like.shape:
            return given
    raise LookupError("no input of the answer's shape")


def _mapped(answer: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(answer, torch.Tensor):
        return change(answer)
    if isinstance(answer, Mapping):
        made = {k: _mapped(v, change) for k, v in answer.items()}
        return type(answer)(**made) if dataclasses.is_dataclass(answer) else type(answer)(made)
    if isinstance(answer, (list, tuple)):
        return type(answer)(_mapped(v, change) for v in answer)
    return answer


def _copied(answer: Any) -> Any:
    # Contiguous, as buffers are: sums of other strides are rounded otherwise.
    return _mapped(answer, lambda t: t.clone(memory_format=torch.contiguous_format))


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and bool(torch.equal(x, y)) for x, y in zip(a, b, strict=True))


@contextlib.contextmanager
def accelerated(pipe: Any, method: Method, **options: Any) -> Iterator[vaccel.Handle]:
    """The pipeline accelerated, without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = vaccel.accelerate(pipe, method, **options)
        try:
            yield handle
        finally:
            handle.remove()


def check(case: Case) -> list[str]:
    """What is wrong with this pipeline under vaccel, a phrase each; nothing for one that is right."""
    wrong: list[str] = []
    pipe = case.build()
    seen = Seen()
    with substituted(case, pipe, seen, None):
        plain = generate(case, pipe, STEPS)
    with accelerated(pipe, Everything()) as handle:
        if not same(plain, generate(case, pipe, STEPS)):
            wrong.append("what skips nothing differs from the plain pipeline")
        steps = sum(len(trace.steps) for trace in handle.traces)
        if not steps:
            wrong.append("no step was seen")
    for residual in (False, True):
        name = "residuals" if residual else "outputs"
        reference = Seen()
        try:
            with substituted(case, pipe, reference, residual):
                want = generate(case, pipe, STEPS)
        except LookupError:  # an answer that the plain loop of the reference has no x for
            pipe = case.build()  # a guider is left in the middle of its run
            continue
        if not residual and same(want, plain) and reference.computed < len(reference.times):
            wrong.append("skipping changes nothing: the case shows nothing")
        with accelerated(pipe, EverySecond(residual)) as handle:
            first = generate(case, pipe, STEPS)
            letters = "".join(trace.timeline() for trace in handle.traces)
            if not same(first, want) and case.name not in NOT_COMPARED:
                wrong.append(f"every second step by {name} differs from the plain loop ({letters})")
            if not same(first, generate(case, pipe, STEPS)):
                wrong.append(f"the second run by {name} differs from the first")
            if set(letters) <= {"F"}:
                wrong.append(f"nothing was skipped ({letters})")
    if not same(plain, generate(case, pipe, STEPS)):
        wrong.append("after remove() the pipeline is another")
    return wrong


def check_without_guidance(case: Case) -> list[str]:
    """Likewise with the arguments that turn guidance off, and back on by the same handle."""
    if case.guidance is None or case.name in NOT_COMPARED:
        return []
    pipe, off, wrong = case.build(), dict(case.guidance), []
    plain = generate(case, pipe, STEPS, **off)
    with substituted(case, pipe, Seen(), False):
        want, want_on = generate(case, pipe, STEPS, **off), None
    with substituted(case, pipe, Seen(), False):
        want_on = generate(case, pipe, STEPS)
    with accelerated(pipe, Everything()):
        if not same(plain, generate(case, pipe, STEPS, **off)):
            wrong.append("without guidance, what skips nothing differs from the plain pipeline")
    with accelerated(pipe, EverySecond(False)):
        for changes, expected, said in ((off, want, "without"), ({}, want_on, "with"), (off, want, "again without")):
            if not same(generate(case, pipe, STEPS, **changes), expected):
                wrong.append(f"{said} guidance every second step differs from the plain loop")
    return wrong


def check_batch(case: Case) -> list[str]:
    """Likewise of two prompts at once; and each sample's shape and place are those of the plain pipeline."""
    if case.batch is None or case.name in NOT_COMPARED:
        return []
    pipe, two, wrong = case.build(), dict(case.batch), []
    plain = generate(case, pipe, STEPS, **two)
    with substituted(case, pipe, Seen(), False):
        want = generate(case, pipe, STEPS, **two)
    for method, expected, said in ((Everything(), plain, "what skips nothing"), (EverySecond(False), want, "skipping")):
        with accelerated(pipe, method):
            if not same(generate(case, pipe, STEPS, **two), expected):
                wrong.append(f"with two prompts {said} differs from the plain loop")
    return wrong


def check_guidance_ends(case: Case) -> list[str]:
    """Likewise where a callback turns guidance off in mid-run, on the first call and on the second."""
    pipe, wrong = case.build(), []
    known = inspect.signature(pipe.__call__).parameters
    if not {"callback_on_step_end", "guidance_scale"} <= set(known) or case.name in NOT_COMPARED:
        return []

    def end(pipe: Any, index: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if index == 2 and hasattr(pipe, "_guidance_scale"):
            pipe._guidance_scale = 1.0
        return kwargs

    how = {"callback_on_step_end": end}
    try:
        plain = generate(case, pipe, STEPS, **how)
    except Exception:  # a loop whose guidance cannot change: its inputs are made for both branches beforehand
        return []
    with substituted(case, pipe, Seen(), False):
        want = generate(case, pipe, STEPS, **how)
    for method, expected, said in ((Everything(), plain, "what skips nothing"), (EverySecond(False), want, "skipping")):
        with accelerated(pipe, method):
            for which in ("first", "second"):
                try:
                    made = generate(case, pipe, STEPS, **how)
                except ValueError as error:
                    # One sample with two prompts: the model answers with two, which are no prediction of its input.
                    if "nothing can stand in for it" not in str(error):
                        raise
                    return wrong
                if not same(made, expected):
                    wrong.append(f"guidance ends in mid-run: {said} differs from the plain loop in the {which} call")
    return wrong
