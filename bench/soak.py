"""A thousand mixed requests from four threads: ``python bench/soak.py [--requests 1000]``.

A tiny Wan pipeline is asked by shallow copies, as a server would ask it: other prompts, seeds and methods
(``handle.using``), a request in ten aborted at some step; between rounds the LoRA is switched, and in every second one
a hook sits on the transformer, as offload has them.  Every clip is compared with the one that its request alone gives.
Told are the clips that differ, memory along the way, and vaccel's own processor time a step (what ``Run.call`` takes
beside the model's forwards, both branches together), its median and 99th percentile:

- of single steps, from a run's third on, by kind: method, what it does in a model's place, computed or skipped;
- of generations: what a whole one took, first steps included, over its number of steps, by method;
- of all steps and of all generations, each relative to the median of its kind.

Of rounds without the hook, under which a view's blocks are put into the model and taken out again, and of requests
beside others alone: a request on its own never waits for another thread, and would make the median smaller and the tail
look longer than what a server sees.  Beside it, what no code of vaccel is part of, before every forward of the bare
pipeline under the same threads: two copies of the latents by torch, the work of a step that takes the last output
again, a loop of additions in Python alone, which never hands the interpreter's lock over, and both in a row.
"""

from __future__ import annotations

import copy
import hashlib
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from peft import LoraConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import results  # noqa: E402
import tiny  # noqa: E402

import vaccel  # noqa: E402
from vaccel.engine.run import Run  # noqa: E402

STEPS, THREADS, ROUND = 12, 4, 100
METHODS: tuple[Any, ...] = (
    vaccel.Schedule(range(0, STEPS, 2), num_steps=STEPS, reuse="output"),
    vaccel.Schedule(range(0, STEPS, 3), num_steps=STEPS, reuse="forecast"),
    vaccel.LeMiCa((0, 1, 4, 8, 11), STEPS),
    vaccel.EasyCache(threshold=0.2, warmup=3),
    vaccel.Auto(psnr=30.0),
    None,
)
ADAPTERS = ("none", "one", "two")
OWN = threading.local()


class Aborted(Exception):  # noqa: N818
    """A client has gone."""


def watched(kind: type, took: list[tuple[str, float]], whole: list[tuple[str, float]]) -> Any:
    """Collects a thread's processor time of every ``Run.call`` beside what the model's forward takes.

    ``took`` has (its kind, seconds) of each step, ``whole`` (its method, seconds a step) of each generation.
    It is the class that is watched: on the model itself it would be a hook, and views would be swapped into it.
    Returns its own forward.
    """
    forward, call = kind.forward, Run.call

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.thread_time()
        try:
            return forward(*args, **kwargs)
        finally:
            OWN.model = getattr(OWN, "model", 0.0) + time.thread_time() - start

    def own(self: Run, *args: Any, **kwargs: Any) -> Any:
        start, OWN.model = time.thread_time(), 0.0
        try:
            return call(self, *args, **kwargs)
        finally:
            own = time.thread_time() - start - OWN.model
            OWN.step = own if self.calls == 1 else OWN.step + own
            if self.calls == 2 and threading.current_thread() is not threading.main_thread():  # else a request alone
                OWN.run = OWN.step + (OWN.run if args[0] else 0.0)
                if self.first_call.large.bare:
                    if args[0] > 1:  # a run's first steps plan it and make its buffers
                        took.append((kind_of_step(self), OWN.step))
                    if args[0] == self.last:
                        whole.append((method_of(self), OWN.run / self.num_steps))

    kind.forward, Run.call = timed, own
    return forward


def method_of(run: Run) -> str:
    """A method's name with a schedule's letters."""
    acts = sorted({act["action"] for act in run.method.to_json().get("actions", ())})
    return " ".join([type(run.method).__name__, *acts])


def kind_of_step(run: Run) -> str:
    """One name for the steps that do the same work."""
    return f"{method_of(run)}, {'computed' if run.action.is_full else 'skipped'}"


def bare(kind: type, forward: Any, pipe: Any, work: Callable[[torch.Tensor], Any]) -> list[float]:
    """The thread's processor time of some ``work`` with the latents before every forward of the pipeline alone."""
    took: list[float] = []

    def timed(model: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        start = time.thread_time()
        work(hidden_states)
        took.append(time.thread_time() - start)
        return forward(model, hidden_states, *args, **kwargs)

    kind.forward = timed
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda seed: tiny.latents(alike(pipe), f"clip {seed}", steps=STEPS, seed=seed), range(ROUND)))
    kind.forward = forward
    return took


def copied(x: torch.Tensor) -> None:
    for _ in range(2):
        torch.clone(x)


def added(_: torch.Tensor) -> None:
    total = 0
    for i in range(1000):
        total += i


def both(x: torch.Tensor) -> None:
    added(x)
    copied(x)


def digest(clip: torch.Tensor) -> str:
    return hashlib.sha256(clip.numpy().tobytes()).hexdigest()[:16]


def told(name: str, times: list[float]) -> dict[str, float]:
    median, late = (1e6 * t for t in (statistics.median(times), p99(times)))
    said = f"{median:.0f} us a step in the median, {late:.0f} at the 99th percentile"
    print(f"{name}: {said}, {late / median:.2f} times", flush=True)
    return {"median_us": round(median, 1), "p99_us": round(late, 1), "times": round(late / median, 2), "of": len(times)}


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def by_name(times: list[tuple[str, float]]) -> dict[str, list[float]]:
    return {name: [t for each, t in times if each == name] for name in sorted({name for name, _ in times})}


def own_time(name: str, times: list[tuple[str, float]]) -> dict[str, Any]:
    """What is said of vaccel's own time, by name and of all together; the first tenth of it warms up."""
    print(f"own time of {name}:")
    kinds = by_name(times[len(times) // 10 :])
    said = {kind: told(f"  {kind}", of) for kind, of in kinds.items()}
    relative = p99([t / statistics.median(of) for of in kinds.values() for t in of])
    print(f"  all, each relative to the median of its kind: {relative:.2f} times at the 99th percentile", flush=True)
    return {"p99_times_the_median_of_its_kind": round(relative, 2), "by_kind": said}


def alike(pipe: Any) -> Any:
    """A request's own shallow copy, as a server makes one."""
    own = copy.copy(pipe)
    own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return own


def request(pipe: Any, handle: Any, job: tuple[int, int, int]) -> str:
    """The digest of a request's clip; "aborted" for one whose client has gone."""
    prompt, method, stop = job
    own = alike(pipe)

    def leaving(pipe: Any, step: int, t: Any, kwargs: Any) -> Any:
        if step == stop:
            raise Aborted
        return kwargs

    more = {"callback_on_step_end": leaving} if stop >= 0 else {}
    try:
        with handle.using(METHODS[method]):
            return digest(tiny.latents(own, f"clip {prompt}", steps=STEPS, seed=prompt, **more))
    except Aborted:
        return "aborted"


def drawn(chance: random.Random) -> tuple[int, int, int]:
    """(prompt, method, the step after which the client leaves; -1 for never)."""
    stop = chance.randrange(STEPS) if chance.random() < 0.1 else -1
    return chance.randrange(8), chance.randrange(len(METHODS)), stop


def adapted(pipe: Any, name: str) -> None:
    if name == "none":
        pipe.transformer.disable_adapters()
    else:
        pipe.transformer.enable_adapters()
        pipe.transformer.set_adapters([name])


def main(
    requests: Annotated[int, typer.Option(min=ROUND, help="How many requests.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON in place of bench/results/cpu.")] = None,
) -> None:
    """Exit status 1 where a clip differs from what its request alone gives."""
    torch.set_num_threads(1)
    pipe, chance, process = tiny.wan_pipeline(), random.Random(0), psutil.Process()
    for seed, name in enumerate(ADAPTERS[1:]):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False)
        pipe.transformer.add_adapter(config, adapter_name=name)
    handle, took, whole, memory, wrong = vaccel.accelerate(pipe, METHODS[0]), [], [], [], []
    forward = watched(tiny.WanTransformer3DModel, took, whole)
    alone: dict[tuple[str, int, int], str] = {}
    aborted = done = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for turn in range(requests // ROUND):
            name = ADAPTERS[turn % len(ADAPTERS)]
            adapted(pipe, name)
            jobs = [drawn(chance) for _ in range(ROUND)]
            for prompt, method, _ in jobs:
                if (name, prompt, method) not in alone:
                    alone[name, prompt, method] = request(pipe, handle, (prompt, method, -1))
            hook = pipe.transformer.register_forward_hook(lambda *_: None) if turn % 2 else None
            for job, found in zip(jobs, pool.map(lambda job: request(pipe, handle, job), jobs), strict=True):
                done += 1
                aborted += found == "aborted"
                if found not in ("aborted", alone[name, job[0], job[1]]):
                    wrong.append([name, *job])
            if hook is not None:
                hook.remove()
            memory.append([round(process.memory_info().rss / 2**20, 1), handle.nbytes])
            said = f"{len(wrong)} wrong, {memory[-1][0]} MiB, {handle.nbytes} bytes cached"
            print(f"{done}/{requests} requests, {said}", flush=True)
    handle.remove()
    own = {"steps": own_time("single steps", took), "generations": own_time("generations", whole)}
    print("what is no part of vaccel, before each forward:")
    works = {"two copies by torch": copied, "additions in Python": added, "both": both}
    controls = {
        name: told(f"  {name}", bare(tiny.WanTransformer3DModel, forward, pipe, work)) for name, work in works.items()
    }
    data = {"requests": done, "aborted": aborted, "wrong": wrong, "threads": THREADS, "memory_mib_and_cached": memory,
            "own": own, "controls": controls}  # fmt: skip
    print(results.write("soak", data, folder=out, command=f"python bench/soak.py --requests {requests}"))
    sys.exit(int(bool(wrong)))


if __name__ == "__main__":
    typer.run(main)
