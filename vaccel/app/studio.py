"""What stands behind the page: requests in a queue, one pipeline, the full model's clips kept."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..evaluate.contenders import Contender
from ..methods import Auto
from ..methods.auto import calibrated
from ..planning.schema import step_count
from .jobs import AUTO, Job, Made, Request
from .sampling import Cancelled, begun, sampled, tried

#: The slider's ends, in times as fast as the full model.
SLOWEST, FASTEST = 1.0, 4.0
#: What ``Auto``, which takes speeds above 1, is given for 1: then it computes all steps, the full model bit for bit.
BARELY = 1 + 1e-7
#: Steps that may be asked for, where the command itself does not ask for more.
MOST_STEPS = 200
#: Letters of a prompt: far more than any text encoder reads.
MOST_LETTERS = 4000
#: A seed is at most this: the largest whole number that a browser holds exactly.
MOST_SEED = 2**53 - 1
#: Requests that may wait.
MOST_WAITING = 32
#: Bytes of the full model's clips that are kept; the last one is, whatever its size.
KEPT_BYTES = 2**30


class Studio:
    """One pipeline, and those who ask it for clips, each in turn.

    Args:
        pipe: a pipeline of diffusers that makes images or videos from a prompt.
        call: further arguments of its call.
        small: the small model, for methods that need one.
        steps: sampling steps, where a request says nothing else.
        artifacts: calibrations that ``Auto`` chooses from, as in ``Auto(artifacts=...)``.
        methods: others than ``Auto`` that may be chosen, by ``parse_contender``.
        examples: prompts to begin with.
        hint: what to say of a prompt beside its clips, "" for nothing.
        fps: frames a second that clips are played with.
        name: what the page calls the pipeline.

    The pipeline is tried for two steps: raises ``ValueError`` where it takes no prompt, makes neither images nor
    videos, fails, or has nothing to accelerate.  Nothing of vaccel stays on it between requests.
    """

    def __init__(
        self, pipe: Any, call: Mapping[str, Any] | None = None, *, small: nn.Module | None = None, steps: int = 50,
        artifacts: Sequence[str] = (), methods: Sequence[Contender] = (), examples: Sequence[str] = ("a red fox",),
        hint: Callable[[str], str] = lambda prompt: "", fps: float = 12, name: str = "",
    ):  # fmt: skip
        self.pipe, self.call, self.small, self.steps = pipe, dict(call or {}), small, step_count(steps)
        self.artifacts, self.methods = tuple(map(str, artifacts)), {AUTO: None, **{m.label: m for m in methods}}
        self.examples, self.hint, self.fps, self.name = list(examples), hint, fps, name or type(pipe).__name__
        self.most_steps = max(MOST_STEPS, steps)
        needy = [method.label for method in methods if method.needs_small and small is None]
        if needy:
            raise ValueError(f"{needy[0]} needs a small model too: pass --small FOLDER")
        for artifact in self.artifacts:
            calibrated(artifact)
        for contender in methods:  # whatever cannot be used says so before anybody waits for it
            with contender.applied(pipe, small):
                pass
        self.shape = tried(pipe, self.examples[0], steps, self.call)
        with self._auto(FASTEST).applied(pipe, small):
            begun(pipe, self.examples[0], steps, self.call)
        self._kept: OrderedDict[tuple[str, int, int, str], tuple[np.ndarray, float]] = OrderedDict()
        self._jobs: deque[Job] = deque()  # the first one runs
        self._changed, self._closed = threading.Condition(), False
        self._worker: threading.Thread | None = None

    # -- requests ----------------------------------------------------------------------------------------------------

    def request(self, prompt: Any, seed: Any, steps: Any, speed: Any, method: Any = AUTO) -> Request:
        """A request from what somebody typed.  Raises ``ValueError`` that says what to change."""
        text = " ".join(prompt.split()) if isinstance(prompt, str) else ""
        if not text:
            raise ValueError("The prompt is empty: say what the clip shows.")
        if len(text) > MOST_LETTERS:
            raise ValueError(f"The prompt has {len(text)} letters; at most {MOST_LETTERS} are taken.")
        if method not in self.methods:
            raise ValueError(f"The method {method!r} is none of {', '.join(self.methods)}.")
        return Request(
            text, int(_number("seed", seed, 0, MOST_SEED, whole=True)),
            int(_number("number of steps", steps, 1, self.most_steps, whole=True)),
            _number("speed", speed, SLOWEST, FASTEST), method,
        )  # fmt: skip

    def submit(self, request: Request, owner: str = "") -> Job:
        """Puts a request at the end of the queue.

        Raises ``ValueError`` where too many wait, ``RuntimeError`` after ``close``.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the page was closed")
            if len(self._jobs) > MOST_WAITING:
                raise ValueError(f"{MOST_WAITING} requests wait already: try again in a while.")
            job = Job(request, owner)
            self._jobs.append(job)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="vaccel-studio", daemon=True)
                self._worker.start()
            self._changed.notify_all()
        return job

    def before(self, job: Job) -> int:
        """How many requests are to be over before this one runs."""
        with self._changed:
            return self._jobs.index(job) if job in self._jobs else 0

    def pending(self, owner: str) -> Job | None:
        """The first request of this owner that waits or runs."""
        with self._changed:
            return next((job for job in self._jobs if job.owner == owner), None)

    def cancel(self, owner: str) -> int:
        """Asks all requests of this owner to stop, and returns how many there were."""
        with self._changed:
            found = [job for job in self._jobs if job.owner == owner]
            for job in found:
                job.cancel()
            for job in [job for job in found if job.status == "waiting"]:
                self._jobs.remove(job)
                job.end("cancelled")
            return len(found)

    def keeps(self, request: Request) -> bool:
        """Whether the full model's clip of this request is there already."""
        return self._key(request) in self._kept

    def close(self, timeout: float | None = None) -> None:
        """Cancels all requests and waits until the pipeline is free; it is as it was then."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.cancel()
            self._changed.notify_all()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join(timeout)

    # -- work --------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """The thread that everything runs on."""
        while True:
            with self._changed:
                while not self._jobs:
                    if self._closed:
                        return
                    self._changed.wait()
                job = self._jobs[0]
                job.status = "running"
            ending: dict[str, Any] = {"status": "failed", "error": "the request was not carried out"}
            try:
                ending = {"status": "done", "made": self._made(job)}
            except Cancelled:
                ending = {"status": "cancelled"}
            except Exception as error:
                ending["error"] = _words(error)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            except BaseException as error:  # nobody waits for ever; the thread goes on
                ending["error"] = _words(error)
            with self._changed:
                self._jobs.remove(job)
            job.end(**ending)

    def _made(self, job: Job) -> Made:
        """The full model's clip, kept or made, and the fast one."""
        request, key = job.request, self._key(job.request)
        kept = key in self._kept
        if not kept:
            job.what = "full model"
            self._keep(key, self._sampled(job, request.steps))
        self._kept.move_to_end(key)
        full, full_seconds = self._kept[key]
        contender = self.methods[request.method] or self._auto(request.speed)
        job.what, job.done, job.total = contender.label, 0, 0
        with contender.applied(self.pipe, self.small) as handle:
            fast, seconds = self._sampled(job, contender.num_steps or request.steps)
            traces = tuple(handle.traces) if handle is not None else ()
        if job.stopping:  # after its last step
            raise Cancelled
        if fast.shape != full.shape:
            raise ValueError(f"{contender.label} made {list(fast.shape)}, the full model {list(full.shape)}")
        return Made(request, full, fast, full_seconds, seconds, kept, contender.label, traces, self.fps)

    def _sampled(self, job: Job, steps: int) -> tuple[np.ndarray, float]:
        request = job.request
        return sampled(self.pipe, request.prompt, request.seed, steps, self.call, job.tell, lambda: job.stopping)

    def _auto(self, speed: float) -> Contender:
        """What the slider says."""
        method = Auto(speedup=max(speed, BARELY), artifacts=self.artifacts)
        return Contender(f"Auto(speedup={speed:g})" if speed > 1 else "all steps computed", "vaccel", AUTO, method)

    def _key(self, request: Request) -> tuple[str, int, int, str]:
        return request.prompt, request.seed, request.steps, repr(sorted(self.call.items()))

    def _keep(self, key: tuple[str, int, int, str], full: tuple[np.ndarray, float]) -> None:
        """Keeps a clip of the full model; those that were not asked for longest make room."""
        self._kept[key] = full
        while len(self._kept) > 1 and sum(clip.nbytes for clip, _ in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)


def studio_of(loaded: Any, **settings: Any) -> Studio:
    """A studio of what ``vaccel.cli.loading.Loaded`` loaded; the demo family brings captions and its calibration.

    ``settings`` are further arguments of ``Studio``.  Raises as it does.
    """
    if loaded.checker is not None:
        from ..demo.shapes import FPS, held_out_captions

        settings = {"hint": _out_of_grammar, "fps": FPS, "name": "demo", **settings}
        settings["examples"] = settings.get("examples") or held_out_captions(4)
        if not settings.get("artifacts") and (shipped := loaded.folder / "forecast.json").is_file():
            settings["artifacts"] = (shipped,)
    return Studio(loaded.pipe, loaded.call, small=loaded.small, **settings)


def _out_of_grammar(prompt: str) -> str:
    from ..demo.shapes import vocabulary

    strange = [word for word in prompt.split() if word not in vocabulary()]
    if not strange:
        return ""
    return f"The demo family has learnt captions such as the examples; it has never seen: {', '.join(strange[:8])}"


def _number(name: str, value: Any, least: float, most: float, *, whole: bool = False) -> float:
    """A number in its range.  Raises ``ValueError`` that names it."""
    kind = "a whole number" if whole else "a number"
    said = f"The {name} must be {kind} from {least:g} to {most if whole else format(most, 'g')}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{said}; there is {'none' if value is None else repr(value)}.")
    if not least <= value <= most or (whole and value != int(value)):
        raise ValueError(f"{said}, not {value:g}.")
    return value


def _words(error: BaseException) -> str:
    text = str(error).strip()
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
