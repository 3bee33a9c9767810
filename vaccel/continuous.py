"""The engine for a server that batches continuously: requests at different steps go through the model together."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from .actions import ModelName
from .denoiser import Denoiser
from .engine.trace import Trace
from .joint_forward import Answering, Ask, answer_together
from .methods import Method
from .methods.base import required
from .planning.flow import Flow

#: How the note of an exception begins that holds its traceback.
NOTE = "raised in a batch of vaccel.BatchedDenoiser:\n"


class BatchedDenoiser:
    """Guided model outputs for many requests at once, each a run of its own: its method, its number of steps, its step.

        server = vaccel.BatchedDenoiser(model, max_rows=16)
        run = server.run(num_steps=50, method=vaccel.Forecast.load("forecast.json", budget=17), guidance=5.0)
        ...                                                    # more requests come and go
        outputs = server.step([(run, i, t, x, cond, uncond), ...])  # one entry a request, in any order

    Every entry's run decides what its step takes.  Those that need the model go through it in one batch, conditional
    and unconditional rows alike; the others are forecast or reused without it.  What a request gets is what
    ``vaccel.Denoiser`` would have given it alone, but for how the model's own results depend on its batch.

    Args:
        large, small: callables ``(x, t, condition) -> output``, with x [N, ...], t [N] on the device of x, and
            conditions as the entries have them, joined along their rows.  A diffusers transformer is wrapped:
            ``lambda x, t, c: transformer(x, t, c, return_dict=False)[0]``.
        max_rows: the most rows of one forward; None for no bound.  A request with more rows goes alone.
        pad: every forward has exactly ``max_rows`` rows, the last one repeated: one shape for compiled or captured
            models, and results that do not change with the number of requests.
        channel_axis: of the latents, as ``vaccel.Denoiser`` takes it.

    Requests are joined where their latents and conditions have the same shapes but for the rows, the same dtypes and
    the same device; others go through the model in batches of their own.

    Raises ``ValueError`` for models that are no callables, or bounds out of range.
    """

    def __init__(
        self,
        large: Callable[..., torch.Tensor],
        small: Callable[..., torch.Tensor] | None = None,
        *,
        max_rows: int | None = None,
        pad: bool = False,
        channel_axis: int | None = None,
    ):
        for model in (large, small):
            if not callable(model) and (model is not None or model is large):
                raise ValueError(f"a model must be a callable (x, t, condition) -> output, got {model!r:.60}")
        if max_rows is not None and (type(max_rows) is not int or max_rows < 1):
            raise ValueError(f"max_rows must be a whole number of at least 1, or None, got {max_rows!r:.60}")
        if pad and max_rows is None:
            raise ValueError("pad=True fills every forward up to max_rows: say how many those are")
        self.large, self.small, self.max_rows, self.pad, self._axis = large, small, max_rows, bool(pad), channel_axis

    def run(
        self,
        num_steps: int,
        method: Method,
        *,
        guidance: float = 1.0,
        flow: Flow | None = None,
        denoise: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor] | None = None,
    ) -> BatchedRun:
        """A fresh run for one request.  It ends with its last step, or by ``close()``; also a context manager.

        Args:
            method, guidance, flow, denoise: as ``vaccel.Denoiser`` and its ``run`` take them, for this request alone.

        Raises ``ValueError`` where the method does not fit T or ``flow``, lacks what it needs, or reaches for the
        inside of the models.
        """
        models = {"large": self.large, "small": self.small}
        least = (self.max_rows or 0) if self.pad else 0
        answering: dict[ModelName, Answering] = {n: Answering(m, least) for n, m in models.items() if m is not None}
        denoiser = Denoiser(
            answering["large"],
            answering.get("small"),
            method=required(method).outside(),
            guidance=guidance,
            denoise=denoise,
            channel_axis=self._axis,
        )
        return BatchedRun(denoiser, num_steps, flow, answering)

    def step(
        self, entries: Iterable[tuple[BatchedRun, int, Any, torch.Tensor, Any, Any]]
    ) -> list[torch.Tensor | Exception]:
        """One step of each request: the guided outputs [b, ...] in the order of the entries.

        Args:
            entries: (run, i, t, x, cond, uncond) each, as ``DenoiserRun.step`` takes them: the run's step i, its
                timestep (a number, or a tensor [] or [b]), its latents [b, ...], its conditions (tensors with b rows,
                or dicts, lists and tuples of such; uncond None for no guidance).

        In the place of a request that fails stands its exception, with its traceback as a note, and its run is over;
        the others are as they would be without it.  Where the model raises for a batch, its requests are computed one
        by one to see whose fault it is.
        """
        entries = list(entries)
        made: list[Any] = [None] * len(entries)
        held: list[BatchedRun] = []
        whole = False
        try:
            with torch.no_grad():
                for place, entry in enumerate(entries):
                    made[place] = _attempt(_begin, entry, held)
                begun = [e[0] for e, failure in zip(entries, made, strict=True) if failure is None]
                answer_together([ask for run in begun for ask in run._asks()], self.max_rows)
                for place, entry in enumerate(entries):
                    if made[place] is None:
                        made[place] = _attempt(_finish, entry[0])
            whole = True
        finally:
            for run in held:
                run._let_go(aborted=not whole)
        return [_severed(answer) if isinstance(answer, Exception) else answer for answer in made]


class BatchedRun:
    """One request's run of a ``BatchedDenoiser``.

    Attributes:
        guidance: the scale w, which may be changed between steps.
    """

    def __init__(self, denoiser: Denoiser, num_steps: int, flow: Flow | None, answering: dict[ModelName, Answering]):
        self._denoiser, self._answering = denoiser, answering
        self._run = denoiser.run(num_steps, flow)
        self._run._run.halts = True
        self._lock = threading.Lock()
        self._over = False
        self._begun: tuple[int, list[Any]] | None = None

    @property
    def trace(self) -> Trace:
        return self._run.trace

    @property
    def guidance(self) -> float:
        return self._denoiser.guidance

    @guidance.setter
    def guidance(self, scale: float) -> None:
        self._denoiser.guidance = scale

    @property
    def over(self) -> bool:
        """Whether it has made its last step, was closed, or has failed."""
        return self._over

    def close(self) -> None:
        """Ends the run, from any thread, and frees what it holds; in the middle of a step, as soon as that is over."""
        self._over = True
        if self._lock.acquire(blocking=False):
            try:
                self._free()
            finally:
                self._lock.release()

    def __enter__(self) -> BatchedRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- a step, under the lock --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _ending_where_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._over = True
            raise

    def _begin(self, i: int, t: Any, x: torch.Tensor, cond: Any, uncond: Any) -> None:
        if not isinstance(x, torch.Tensor) or x.ndim < 1 or not len(x):
            raise ValueError(f"x must be latents [b, ...] with a row or more, got {getattr(x, 'shape', x)!r:.60}")
        if not isinstance(i, int) or isinstance(i, bool):
            raise ValueError(f"a step is a whole number, got {i!r:.60}")
        t = torch.as_tensor(t, device=x.device)
        if t.shape not in ((), (len(x),)):
            raise ValueError(f"t must be a number or a tensor [] or [{len(x)}], got {list(t.shape)}")
        asked = self._run._asked(i, t.expand(len(x)), x, cond, uncond)
        self._run._called(i, asked[0])  # which halts once its step is decided
        self._begun = i, asked

    def _asks(self) -> list[Ask]:
        """What its step will ask of the models."""
        action, (_, inputs) = self._run._run.action, self._begun
        wanted = action.forwards(len(inputs))
        return [self._answering[model].expect(inputs[branch]) for model, branch in wanted if branch < len(inputs)]

    def _finish(self) -> torch.Tensor:
        output = self._run._answered(*self._begun)
        run = self._run._run
        if run.index == run.last:
            run.close()
            self._over = True
        return output

    def _let_go(self, *, aborted: bool) -> None:
        """The step is over."""
        self._begun = None
        for answering in self._answering.values():
            answering.forget()
        self._over = self._over or aborted
        self._lock.release()
        if self._over:
            self.close()

    def _free(self) -> None:
        if self._run is not None and self._run._given_back.alive:
            self._run._buffers.clear()
            self._run._run.release()
            self._run._given_back.detach()


def _attempt(part: Callable[..., Any], *args: Any) -> Any:
    """What a part of a request's step gives, or the exception that it raises."""
    try:
        return part(*args)
    except Exception as error:
        return error


def _severed(error: Exception) -> Exception:
    """The exception without its frames, which would hold what the others were given as long as somebody keeps it."""
    said = f"{NOTE}{''.join(traceback.format_tb(error.__traceback__))}"
    chain: list[BaseException | None] = [error]
    known: set[int] = set()
    while chain:
        each = chain.pop()
        if each is not None and id(each) not in known:
            known.add(id(each))
            each.__traceback__ = None
            chain += [each.__context__, each.__cause__]
    if hasattr(error, "add_note") and not any(n.startswith(NOTE) for n in getattr(error, "__notes__", ())):
        error.add_note(said)  # from Python 3.11 on
    return error


def _begin(entry: Sequence[Any], held: list[BatchedRun]) -> None:
    if not isinstance(entry, (tuple, list)) or len(entry) != 6 or not isinstance(entry[0], BatchedRun):
        raise ValueError(f"an entry must be (run, i, t, x, cond, uncond), got {type(entry).__name__}")
    run, *given = entry
    if run._over:
        raise ValueError("this run is over: open another with server.run(num_steps, method)")
    if not run._lock.acquire(blocking=False):
        raise ValueError("this run has a step under way already: one entry a run and batch")
    held.append(run)
    with run._ending_where_it_fails():
        run._begin(*given)


def _finish(run: BatchedRun) -> torch.Tensor:
    if run._over:
        raise ValueError("this run was closed in the middle of its step")
    with run._ending_where_it_fails():
        return run._finish()
