"""What the tests of parallel ranks run in each rank's process; results are files that the test reads."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

import vaccel
from vaccel.cache import Buffers
from vaccel.parallel import exchange
from vaccel.parallel.sharing import shared_with

STEPS = 8
#: (method, whether it needs a small model)
METHODS: dict[str, tuple[vaccel.Method | None, bool]] = {
    "plain": (None, False),
    "blocks": (vaccel.Schedule(range(0, STEPS, 2), num_steps=STEPS), False),
    "resume": (vaccel.Schedule.from_timeline("FFbFbFbF"), False),
    "forecast": (vaccel.Forecast((0, 2, 5), STEPS), False),
    "prior": (vaccel.Forecast.prior(4), False),
    "direction": (vaccel.DirectionMagnitude(threshold=0.05), True),
    "teacache": (vaccel.TeaCache(threshold=1.5, coefficients=(1.0, 0.0)), False),
    "easycache": (vaccel.EasyCache(threshold=0.3, warmup=2), False),
    "srdiffusion": (vaccel.SRDiffusion(threshold=0.01, fix_steps=2), True),
    "mixcache": (vaccel.MixCache(theta=0.5), False),
}


@contextlib.contextmanager
def world() -> Iterator[int]:
    """This process as a rank; its number."""
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def latents(pipe: Any, **call: Any) -> torch.Tensor:
    given = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "generator": torch.Generator().manual_seed(0)}
    return pipe("a red cat runs", **given, **tiny.WAN_CALL, **call).frames


def pipeline(share: str = "") -> Any:
    """A Wan pipeline of four heads, whole or shared by all ranks in a way such as "ulysses 2", "ring 2, ulysses 2"."""
    pipe = tiny.wan_pipeline(transformer=tiny.wan_transformer(heads=4))
    if share == "tensor":
        tensor_parallel(pipe.transformer)
    elif share:
        context_parallel(pipe.transformer, share)
    return pipe


def context_parallel(model: Any, share: str) -> None:
    from diffusers import ContextParallelConfig
    from diffusers.models import attention_dispatch

    # diffusers numbers a rank's device by torch.accelerator.device_count(), which is 0 without an accelerator.
    torch.accelerator.device_count = lambda: 1
    degrees = {f"{kind}_degree": int(count) for kind, count in (each.split() for each in share.split(", "))}
    if "ring_degree" in degrees:
        attention_dispatch._native_attention_forward_op = _with_logsumexp
    model.enable_parallelism(config=ContextParallelConfig(**degrees))


def _with_logsumexp(ctx: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    """A double of attention's kernel, and of nothing else: torch's own on CPUs gives no logsumexp, which rings need."""
    q, k, v = (x.permute(0, 2, 1, 3) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores.softmax(-1) @ v).permute(0, 2, 1, 3), scores.logsumexp(-1).permute(0, 2, 1)


def tensor_parallel(model: Any) -> None:
    """The feed-forward's first layer by columns, its second by rows: the sum over ranks is on all of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    for block in model.blocks:
        parallelize_module(block, mesh, {"ffn.net.0.proj": ColwiseParallel(), "ffn.net.2": RowwiseParallel()})


def small() -> Any:
    return tiny.wan_small()


def made(pipe: Any, names: list[str], **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Latents and what traces say, by method."""
    clips, said = {}, {}
    for name in names:
        method, needs_small = METHODS[name]
        if method is None:
            clips[name], said[name] = latents(pipe), {"timeline": "F" * STEPS, "notes": []}
            continue
        with vaccel.accelerate(pipe, method, small=small() if needs_small else None, **options) as handle:
            before = _exchanges()
            clips[name] = latents(pipe)
            said[name] = {"timeline": handle.trace.timeline(), "notes": handle.trace.notes}
            said[name]["exchanges"] = _exchanges() - before
    return clips, said


def _exchanges() -> int:
    """How often ranks have told one another something so far."""
    return sum(each.count for each in exchange._exchanges.values())


def write(folder: str, key: str, clips: dict[str, torch.Tensor], said: Any) -> None:
    rank = os.environ.get("RANK", "one")
    save_file({name: clip.contiguous() for name, clip in clips.items()}, f"{folder}/{key}.{rank}.safetensors")
    Path(f"{folder}/{key}.{rank}.json").write_text(json.dumps(said))


def read(folder: Any, key: str, count: int) -> list[tuple[dict[str, torch.Tensor], Any]]:
    """By rank."""
    each = [Path(folder) / f"{key}.{rank}" for rank in range(count)]
    return [(load_file(f"{path}.safetensors"), json.loads(Path(f"{path}.json").read_text())) for path in each]


def perturbed(factor: float) -> Callable[[], None]:
    """From now on every value that a decision depends on is so many times as large here; returns what ends that."""
    own = Buffers.read

    def reading(self: Buffers, key: Any, tensor: torch.Tensor, *rest: Any) -> Any:
        return own(self, key, tensor * factor, *rest)

    Buffers.read = reading

    def undo() -> None:
        Buffers.read = own

    return undo


# -- what ranks do ---------------------------------------------------------------------------------------------------


def shares(folder: str, ways: dict[str, list[str]]) -> None:
    """Every way of sharing with every method named beside it."""
    with world():
        for way, names in ways.items():
            write(folder, way.replace(" ", ""), *made(pipeline(way), names))


def disagreeing(folder: str, factor: float, names: list[str]) -> None:
    """Rank 1's signals are others: with whole models, with such that all ranks are said to share, and with shared."""
    with world() as rank:
        METHODS["guarded"] = _guarded(), False
        whole, shared = pipeline(), pipeline("ulysses 2")
        undo = perturbed(factor if rank == 1 else 1.0)
        write(folder, "alone", *made(whole, names))
        write(folder, "said", *made(whole, names, process_group=dist.group.WORLD))
        write(folder, "shared", *made(shared, names))
        undo()


def _guarded() -> vaccel.Forecast:
    return vaccel.Forecast.prior(4, guard=2.0)


def choosing(folder: str) -> None:
    """``Auto`` learns from one run, and chooses for the next, by the first rank's times."""
    with world() as rank:
        pipe = pipeline("ulysses 2")
        auto = vaccel.Auto(speedup=2, learn=1, guard=2.0, folder=f"{folder}/learnt")
        handle = vaccel.accelerate(pipe, auto)
        clips, said = {}, {}
        for number in range(3):
            if rank == 1:  # a clock of its own would have it compute everything
                from vaccel.integrations.diffusers.auto import Pilot, Times

                Pilot._known_times = lambda self, method: Times(1.0, 1.0, 1.0)
            clips[str(number)] = latents(pipe)
            said[str(number)] = {"timeline": handle.trace.timeline(), "notes": handle.trace.notes}
        write(folder, "auto", clips, said)


def model(x: torch.Tensor, t: Any, condition: float) -> torch.Tensor:
    """A denoiser as a callable."""
    return torch.tanh(x * (1 + condition)) * (0.5 + float(t) / 1000) + 0.01 * x.roll(1, -1)


def guided(x: torch.Tensor, t: Any, conditions: tuple[float, float]) -> torch.Tensor:
    """Guidance with a branch on each of two ranks, gathered; on one process both are computed."""
    if not dist.is_initialized():
        cond, uncond = (model(x, t, c) for c in conditions)
    else:
        mine = model(x, t, conditions[dist.get_rank()])
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine)
        cond, uncond = both
    return uncond + 3.0 * (cond - uncond)


def by_hand(method: vaccel.Method, seed: int = 0, **options: Any) -> tuple[torch.Tensor, Any]:
    """A hand-written loop over ``guided``."""
    denoiser = vaccel.Denoiser(guided, method=method, **options)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    with denoiser.run(num_steps=STEPS) as run:
        for i in range(STEPS):
            x = x - run.step(i, 1000 - 100 * i, x, (0.5, -0.25)) / STEPS
    return x, run.trace


def guidance(folder: str) -> None:
    """A branch of guidance on each rank, with rank 1's signals as they are and perturbed."""
    with world() as rank:
        clips, said = {}, {}
        for name, factor in (("same", 1.0), ("perturbed", 40.0)):
            undo = perturbed(factor if rank == 1 else 1.0)
            clip, trace = by_hand(vaccel.EasyCache(threshold=0.7, warmup=2), process_group=dist.group.WORLD)
            clips[name], said[name] = clip, trace.timeline()
            undo()
        write(folder, "guidance", clips, said)


def sharded(folder: str) -> None:
    """FSDP2: a rank's parameters are gathered by every forward, though each makes the same video here."""
    from torch.distributed.fsdp import fully_shard

    with world():
        pipe = pipeline()
        for block in pipe.transformer.blocks:
            fully_shard(block)
        fully_shard(pipe.transformer)
        write(folder, "fsdp", *made(pipe, ["teacache", "blocks", "forecast"]))
        write(folder, "seen", {"none": torch.zeros(1)}, _seen())


def _seen() -> list[list[int]]:
    """Whom a model shows to share it by diffusers' configuration of tensor parallelism, and by replicated weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    configured, copied = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    tensor = SimpleNamespace(_mesh=mesh)
    configured._parallel_config = SimpleNamespace(context_parallel_config=None, tensor_parallel_config=tensor)

    def replicate(name: str, module: torch.nn.Module, mesh: Any) -> None:
        for key, weight in list(module.named_parameters()):
            module.register_parameter(key, torch.nn.Parameter(distribute_tensor(weight, mesh, [Replicate()])))

    distribute_module(copied, mesh, replicate)
    return [list(shared_with(configured)), list(shared_with(copied))]


def page(folder: str, blocks: list[str]) -> None:
    """The blocks of a page of the documentation, each with a pipeline of its own."""
    warnings.simplefilter("ignore")
    torch.accelerator.device_count = lambda: 1
    names: dict[str, Any] = {"vaccel": vaccel, "prompt": "a red cat runs", "model": model, "x": torch.ones(1, 4, 8, 8)}
    names |= {"cond": 0.5, "uncond": -0.25, "timesteps": range(1000, 0, -20)}
    names["solver"] = SimpleNamespace(step=lambda v, t, x: x - v / 50)
    os.environ["XDG_CACHE_HOME"], said = folder, []
    for block in blocks:
        names["pipe"] = shown = pipeline()
        calls, kind = {**tiny.WAN_CALL, "generator": torch.Generator().manual_seed(0)}, type(shown)

        def call(self: Any, *args: Any, kind: type = kind, calls: dict = calls, **kwargs: Any) -> Any:
            return kind.__call__(self, *args, **{**calls, **kwargs})

        shown.__class__ = type(kind.__name__, (kind,), {"__call__": call})
        exec(block, names)
        said.append((names.pop("handle", None) or names["run"]).trace.timeline())
    write(folder, "page", {"none": torch.zeros(1)}, said)
    dist.destroy_process_group()


def apart(folder: str) -> None:
    """Ranks with whole models: other methods, steps and numbers of videos on each, and nobody waits."""
    with world() as rank:
        pipe, names = pipeline(), (["easycache", "blocks", "direction"] if rank else ["forecast"])
        write(folder, "apart", *made(pipe, names))


def unlike(folder: str) -> None:
    """What one rank of those that share a model does otherwise is an error on all; then they go on."""
    said: dict[str, str] = {}
    with world() as rank:
        pipe, group = pipeline(), {"process_group": dist.group.WORLD}

        def failing(name: str, method: vaccel.Method, **call: Any) -> None:
            with vaccel.accelerate(pipe, method, **group) as handle:
                try:
                    latents(pipe, **call)
                    said[name] = handle.trace.timeline()
                except (ValueError, RuntimeError) as error:
                    said[name] = f"{type(error).__name__}: {error}"

        failing("methods", vaccel.EasyCache(threshold=0.3 + rank / 10, warmup=2))
        failing("start", vaccel.Schedule([0], num_steps=STEPS if rank == 0 else STEPS + 1))
        failing("aborted", METHODS["easycache"][0], callback_on_step_end=_aborts)
        failing("same", METHODS["easycache"][0])
        write(folder, "unlike", {"none": torch.zeros(1)}, said)


def _aborts(pipe: Any, step: int, t: Any, given: dict) -> dict:
    if step == 3:
        raise RuntimeError("on all ranks")
    return given


# -- what goes wrong -------------------------------------------------------------------------------------------------


def fault(folder: str, kind: str, share: str, name: str) -> None:
    """Rank 1 dies, hangs, raises or runs out of memory in the middle; what the others make of it is written down."""
    import signal
    import time

    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    rank, began = dist.get_rank(), time.monotonic()

    def between(pipe: Any, step: int, t: Any, given: dict) -> dict:
        if rank == 1 and step == 3:
            if kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "hangs":
                time.sleep(600)
            if kind == "raises":
                raise KeyError("a callback's own")
        return given

    pipe = pipeline(share)
    handle = vaccel.accelerate(pipe, METHODS[name][0], process_group=dist.group.WORLD)
    if kind == "memory" and rank == 1:
        Buffers.empty = _full
    try:
        latents(pipe, callback_on_step_end=between)
        said = f"done: {handle.trace.timeline()}"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    Path(f"{folder}/{kind}.{rank}.json").write_text(json.dumps([said, time.monotonic() - began]))
    if kind == "raises" and rank == 1:  # a server that goes on
        time.sleep(20)
    os._exit(0)  # without waiting for those that are no more


def _full(self: Buffers, *args: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
