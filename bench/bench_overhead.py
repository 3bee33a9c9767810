"""What a step costs beyond the model: Python and arithmetic of vaccel and its peers, on one tiny Wan transformer.

    pytest bench/bench_overhead.py --benchmark-json=out/overhead.json        # the standard table, one after another
    VACCEL_BENCH_WRITE=1 pytest bench/bench_overhead.py -k interleaved       # the comparison, and its JSON

On a machine with other work, ``--benchmark-timer=time.thread_time`` gives the standard table the comparison's clock.

Every contender is called as WanPipeline's loop calls its transformer, guidance off, so that each call bears its step's
decision.  What a call costs *over bare* is its time minus that of the parts of the model it still runs, measured
beside it on a transformer that has only those parts and is called the same way:

    nothing     an empty forward: what every call costs, cache context and ``Module.__call__`` included
    0 blocks    embeddings and head (a step that reuses the residual of the block stack)
    no proj     the same, its output projection replaced by a tensor that is there already
    1 block     embeddings, one block, head
    small       the small transformer (a rescaled step)
    bare        all blocks (4, or VACCEL_BENCH_BLOCKS): a computed step, and what every ratio is a ratio to

The decision is no part of the model: TeaCache's timestep embedding counts as overhead.  All share one set of weights.
Interleaved, a round goes through the contenders in random order and times each call beside one of its reference: the
difference of such a pair is what the call costs over bare.  The clock is the thread's own processor time, since all of
it runs in one thread: other processes then disturb less.  ``low`` is the same with tenth percentiles in place of
medians: what is left where nothing else pushes code and data out of the processor's caches.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import HookRegistry, ModelHook
from gpu_parts import gpu
from results import write
from tiny import unipc, wan_pipeline, wan_small, wan_transformer
from torch import nn

import vaccel

try:
    import cache_dit
except ImportError:  # the comparison is then without it
    cache_dit = None

STEPS = 50
TIMED = range(5, STEPS - 1)  # past everybody's warm-up, short of the run's end
ROUNDS = int(os.environ.get("VACCEL_BENCH_ROUNDS", "50"))
#: Pairs a round; a computed call is long beside what it costs over bare, and wants more of them.
PAIRS = {"skipped": 12, "computed": 36}
BLOCKS = int(os.environ.get("VACCEL_BENCH_BLOCKS", "4"))
#: Where the models are.  On a GPU it is still the host's time that is measured: nothing waits for the device.
DEVICE = os.environ.get("VACCEL_BENCH_DEVICE", "cpu")
LATENTS = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
TEXT = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE)
COMMAND = (
    "VACCEL_BENCH_WRITE=1 "
    + (f"VACCEL_BENCH_BLOCKS={os.environ['VACCEL_BENCH_BLOCKS']} " if "VACCEL_BENCH_BLOCKS" in os.environ else "")
    + "pytest bench/bench_overhead.py -k interleaved"
)
NEVER, ALWAYS = 1e-9, 1e9  # thresholds that let nothing pass, and everything


class Loop:
    """A transformer in WanPipeline's loop, run after run.

    Calling it is what is timed: one call of the transformer.  ``prepare`` does what lies between two of those: the
    scheduler's step, and the steps that are not timed.
    """

    def __init__(self, transformer: nn.Module, scheduler: Any = None, *, begin: Callable[[], Any] = lambda: None):
        self.transformer, self.scheduler, self.begin = transformer, scheduler or unipc(), begin
        self.context = contextvars.copy_context()  # where its run is open while others take their turns
        self.index, self.output, self.ready = STEPS, None, False
        self.pipe = self.handle = self.small = None

    def prepare(self) -> None:
        while not self.ready:
            if self.index < STEPS:
                self.latents = self.scheduler.step(self.output, self.t, self.latents, return_dict=False)[0]
            self.index += 1
            if self.index >= STEPS:
                self._begin()
            self.t = self.scheduler.timesteps[self.index]
            self.timestep = self.t.expand(1)
            self.sigma = float(self.scheduler.sigmas[self.index])
            self.ready = self.index in TIMED
            if not self.ready:
                self()

    def _begin(self) -> None:
        """A new run."""
        self.index, self.latents = 0, LATENTS
        self.scheduler.set_timesteps(STEPS, device=DEVICE)
        self.context.run(self.begin)

    def __call__(self) -> None:
        self.ready = False
        self.context.run(self._call)

    def _call(self) -> None:
        with self.transformer.cache_context("cond", step_index=self.index, sigma=self.sigma, num_inference_steps=STEPS):
            self.output = self.transformer(
                hidden_states=self.latents,
                timestep=self.timestep,
                encoder_hidden_states=TEXT,
                attention_kwargs=None,
                return_dict=False,
            )[0]


@dataclasses.dataclass(frozen=True)
class Contender:
    """``blocks`` of the transformer run in a timed call; ``reference`` names the bare model with the same parts."""

    name: str
    kind: str  # "reference", "skipped" or "computed"
    build: Callable[[], Loop]
    reference: str = ""
    blocks: int = 0
    letter: str = ""  # what vaccel's trace says of a timed step

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.name}"


# -- the bare model --------------------------------------------------------------------------------------------------


class _Kept(nn.Module):
    """Returns the same tensor at every call."""

    def __init__(self, tensor: torch.Tensor):
        super().__init__()
        self.tensor = tensor

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.tensor


@functools.cache
def _weights() -> dict[str, torch.Tensor]:
    return wan_transformer(layers=BLOCKS).to(DEVICE).state_dict()


def _shared(transformer: nn.Module) -> nn.Module:
    """With everybody's weights, at the same addresses: no contender has the luckier memory."""
    transformer.load_state_dict(_weights(), strict=False, assign=True)
    return transformer.to(DEVICE).requires_grad_(False)


def _wan(layers: int = BLOCKS) -> nn.Module:
    return _shared(wan_transformer(layers=layers))


def _small() -> nn.Module:
    return wan_small().to(DEVICE)


def _nothing() -> Loop:
    transformer, output = _wan(), (LATENTS,)
    transformer.forward = lambda **kwargs: output
    return Loop(transformer)


def _no_projection() -> Loop:
    transformer = _wan(0)
    tokens = LATENTS[0, 0].numel() // 4  # patches of 1 x 2 x 2
    transformer.proj_out = _Kept(torch.zeros(1, tokens, 64, device=DEVICE))
    return Loop(transformer)


# -- diffusers ------------------------------------------------------------------------------------------------------


class _BareHook(ModelHook):
    """Does nothing; with ``kept`` it returns that instead of calling the model."""

    def __init__(self, kept: tuple | None = None):
        super().__init__()
        self.kept = kept

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.fn_ref.original_forward(*args, **kwargs) if self.kept is None else self.kept


def _hooked(kept: tuple | None = None) -> Loop:
    transformer = _wan()
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(_BareHook(kept), "bare")
    return Loop(transformer)


def _diffusers(config: Any) -> Loop:
    """A transformer with diffusers' cache; its state is reset before every run, as pipelines do after one."""
    transformer = _wan()
    transformer.enable_cache(config)
    return Loop(transformer, begin=transformer._reset_stateful_cache)


def _mag_cache(threshold: float) -> Loop:
    ratios = torch.ones(STEPS)
    return _diffusers(MagCacheConfig(threshold, STEPS, 0.0, num_inference_steps=STEPS, mag_ratios=ratios))


def _taylor_lite(**kwargs: Any) -> Loop:
    return _diffusers(TaylorSeerCacheConfig(STEPS, 2, taylor_factors_dtype=torch.float32, use_lite_mode=True, **kwargs))


# -- cache-dit ------------------------------------------------------------------------------------------------------


def _cache_dit(calibrator: Any = None, **kwargs: Any) -> Loop:
    """A transformer with DBCache F1B0; refreshed before every run, as its guide says."""
    transformer = _wan()
    shared = {"max_warmup_steps": 2, "enable_separate_cfg": False, "num_inference_steps": STEPS}
    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, **shared, **kwargs)
    cache_dit.enable_cache(transformer, cache_config=config, calibrator_config=calibrator)
    fresh = cache_dit.DBCacheConfig().reset(num_inference_steps=STEPS)
    return Loop(transformer, begin=lambda: cache_dit.refresh_context(transformer, cache_config=fresh, verbose=False))


def _mask(computed: int) -> dict[str, Any]:
    """The static mask: that many steps computed, the rest reused, nothing decided."""
    mask = [1] * computed + [0] * (STEPS - computed)
    return {"steps_computation_mask": mask, "steps_computation_policy": "static"}


# -- vaccel ---------------------------------------------------------------------------------------------------------


def _vaccel(method: vaccel.methods.Method, family: str | None = None) -> Loop:
    pipe, small = wan_pipeline(transformer=_wan()), _small() if method.needs_small else None
    pipe._guidance_scale = 1.0  # the pipeline's call sets it
    handle = vaccel.accelerate(pipe, method, small=small, family=family)
    opened: list[Any] = []

    def begin() -> None:
        """Closes the last run and opens another, as the pipeline's call does."""
        if opened:
            opened.pop().__exit__(None, None, None)
        opened.append(handle.run(STEPS).__enter__())

    loop = Loop(pipe.transformer, pipe.scheduler, begin=begin)
    loop.pipe, loop.handle, loop.small = pipe, handle, small
    return loop


def _schedule(full: int, reuse: str) -> Loop:
    return _vaccel(vaccel.Schedule(range(full), num_steps=STEPS, reuse=reuse))


def _forecast(full: int) -> Loop:
    return _vaccel(vaccel.Forecast(tuple(range(full)), num_steps=STEPS))


def _teacache(distance: float) -> Loop:
    """Every step adds ``distance`` to what is tolerated up to 0.5, whatever the embeddings say."""
    return _vaccel(vaccel.TeaCache(threshold=0.5, coefficients=(0.0, 0.0, 0.0, 0.0, distance)))


def _easycache(threshold: float) -> Loop:
    return _vaccel(vaccel.EasyCache(threshold, warmup=2))


def _mixcache(theta: float, **settings: Any) -> Loop:
    """Never out of its warm-up, or in one long cycle after it."""
    return _vaccel(vaccel.MixCache(theta=theta, interval=2 * STEPS, penalty=False, **settings))


def _rescaled(first: float) -> Loop:
    return _vaccel(vaccel.DirectionMagnitude(threshold=ALWAYS, first=first, last=1.0))


def _reference(name: str, build: Callable[[], Loop], blocks: int = 0) -> Contender:
    return Contender(name, "reference", build, blocks=blocks)


def _skipped(name: str, reference: str, build: Callable[[], Loop], blocks: int = 0, letter: str = "") -> Contender:
    return Contender(name, "skipped", build, reference, blocks, letter)


def _computed(name: str, build: Callable[[], Loop], letter: str = "") -> Contender:
    return Contender(name, "computed", build, "bare", BLOCKS, letter)


def _cache_dit_taylor() -> Loop:
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1)
    return _cache_dit(calibrator, residual_diff_threshold=ALWAYS)


ONE = STEPS - 1  # steps computed by a schedule that reuses once: it must store
CONTENDERS = [
    _reference("nothing", _nothing),
    _reference("0 blocks", lambda: Loop(_wan(0))),
    _reference("no proj", _no_projection),
    _reference("1 block", lambda: Loop(_wan(1)), 1),
    _reference("small", lambda: Loop(_small()), 2),
    _reference("bare", lambda: Loop(_wan()), BLOCKS),
    _skipped("bare hook", "nothing", lambda: _hooked((LATENTS,))),
    _skipped("vaccel Schedule, residual", "nothing", lambda: _schedule(1, "residual"), letter="r"),
    _skipped("vaccel Schedule, blocks", "0 blocks", lambda: _schedule(1, "blocks"), letter="r"),
    _skipped("vaccel TeaCache", "0 blocks", lambda: _teacache(0.0), letter="r"),
    _skipped("vaccel DirectionMagnitude", "small", lambda: _rescaled(0.02), letter="m"),
    _skipped("vaccel MixCache, step level", "nothing", lambda: _mixcache(ALWAYS, levels=("step",)), letter="o"),
    _skipped("vaccel Forecast", "nothing", lambda: _forecast(2), letter="p"),
    _skipped("vaccel EasyCache", "nothing", lambda: _easycache(ALWAYS), letter="r"),
    _skipped("diffusers FirstBlockCache", "1 block", lambda: _diffusers(FirstBlockCacheConfig(ALWAYS)), 1),
    _skipped("diffusers MagCache", "0 blocks", lambda: _mag_cache(ALWAYS)),
    _skipped("diffusers TaylorSeer lite", "no proj", _taylor_lite),
    _skipped("cache-dit DBCache F1B0", "1 block", lambda: _cache_dit(residual_diff_threshold=ALWAYS), 1),
    _skipped("cache-dit static mask", "1 block", lambda: _cache_dit(**_mask(2)), 1),
    _skipped("cache-dit TaylorSeer", "1 block", _cache_dit_taylor, 1),
    _computed("bare hook", _hooked),
    _computed("vaccel Schedule, residual", lambda: _schedule(ONE, "residual"), "F"),
    _computed("vaccel Schedule, blocks", lambda: _schedule(ONE, "blocks"), "F"),
    _computed("vaccel TeaCache", lambda: _teacache(1.0), "F"),
    _computed("vaccel DirectionMagnitude", lambda: _rescaled(0.98), "F"),
    _computed("vaccel MixCache", lambda: _mixcache(0.0), "F"),
    _computed("vaccel Forecast", lambda: _forecast(ONE), "F"),
    _computed("vaccel EasyCache", lambda: _easycache(0.0), "F"),
    _computed("diffusers FirstBlockCache", lambda: _diffusers(FirstBlockCacheConfig(-1.0))),
    _computed("diffusers MagCache", lambda: _mag_cache(-1.0)),
    _computed("diffusers TaylorSeer lite", lambda: _taylor_lite(disable_cache_after_step=0)),
    _computed("cache-dit DBCache F1B0", lambda: _cache_dit(residual_diff_threshold=NEVER)),
    _computed("cache-dit static mask", lambda: _cache_dit(**_mask(STEPS))),
]
CONTENDERS = [c for c in CONTENDERS if cache_dit is not None or not c.name.startswith("cache-dit")]


# -- the measurement ------------------------------------------------------------------------------------------------


@functools.cache
def built(contender: Contender) -> Loop:
    """The contender, ready at a timed step, after a run in which it was seen to do what it says."""
    loop, seen = contender.build(), []
    small = list(loop.small.blocks) if loop.small is not None else []
    # Inside the blocks: a hook of diffusers replaces a block's forward and still counts as a call of the block.
    inside = [*(block.ffn for block in loop.transformer.blocks), *(block.ffn for block in small)]
    counting = [module.register_forward_pre_hook(lambda module, args: seen.append(module)) for module in inside]
    ran = contender.blocks + (len(small) if contender.letter == "m" else 0)
    for _ in TIMED:
        loop.prepare()
        seen.clear()
        loop()
        assert len(seen) == ran, f"{contender.id}: {len(seen)} blocks ran at step {loop.index}, expected {ran}"
    for hook in counting:
        hook.remove()
    if loop.handle is not None:
        timeline = loop.handle.trace.timeline()
        assert {timeline[i] for i in TIMED} == {contender.letter}, f"{contender.id}: {timeline}"
    loop.prepare()
    return loop


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """One thread, no gradients, no collection in the middle of a call."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    with torch.no_grad():
        yield
    gc.enable()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: c.id)
def test_call(benchmark: Any, contender: Contender) -> None:
    loop = built(contender)
    benchmark.group = contender.kind
    benchmark.extra_info["reference"] = contender.reference
    benchmark.pedantic(loop, setup=loop.prepare, rounds=10 * len(TIMED), warmup_rounds=len(TIMED))


def _timed(loop: Loop) -> float:
    """Microseconds of the next call."""
    loop.prepare()
    if DEVICE != "cpu":
        torch.cuda.synchronize()  # a queue that is full makes the host wait
    start = time.thread_time_ns()
    loop()
    return (time.thread_time_ns() - start) / 1000


def _pair(loop: Loop, reference: Loop, first: bool) -> tuple[float, float]:
    """The next call of both, microseconds; ``first`` says whether the contender's comes first."""
    if first:
        return _timed(loop), _timed(reference)
    other = _timed(reference)
    return _timed(loop), other


def _spread(values: list[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def _low(values: list[float]) -> float:
    return statistics.quantiles(values, n=10)[0]


def _rows(samples: dict[str, list[float]], beside: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row a contender: its calls, their differences from the reference's beside them, the ratio to bare."""
    bare = statistics.median(samples["reference: bare"])
    rows = []
    for c in CONTENDERS:
        median = statistics.median(samples[c.id])
        row = {"kind": c.kind, "name": c.name, "reference": c.reference, "blocks_run": c.blocks,
               "median_us": median, "iqr_us": _spread(samples[c.id])}  # fmt: skip
        if c.reference:
            low = _low(samples[c.id]) - _low(beside[c.id])
            over = [call - other for call, other in zip(samples[c.id], beside[c.id], strict=True)]
            row |= {"over_bare_us": statistics.median(over), "over_bare_iqr_us": _spread(over), "over_bare_low_us": low}
        row["ratio_to_bare"] = median / bare
        rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':39} {'median':>7} {'iqr':>6} {'over bare':>9} {'iqr':>6} {'low':>6} {'ratio':>6}  over"]
    for row in rows:
        over = " " * 23
        if row["reference"]:
            over = f"{row['over_bare_us']:9.1f} {row['over_bare_iqr_us']:6.1f} {row['over_bare_low_us']:6.1f}"
        lines.append(
            f"{row['kind']:10} {row['name']:28} {row['median_us']:7.1f} {row['iqr_us']:6.1f} {over} "
            f"{row['ratio_to_bare']:6.3f}  {row['reference']}"
        )
    return "\n".join(lines)


def test_interleaved(capsys: Any) -> None:
    """All contenders in turn, so that whatever disturbs the machine disturbs them alike; microseconds."""
    loops = {contender.id: built(contender) for contender in CONTENDERS}
    order, rng = [contender for contender in CONTENDERS if contender.reference], random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in loops}
    beside: dict[str, list[float]] = {name: [] for name in loops}
    for round_ in range(ROUNDS + 1):
        rng.shuffle(order)
        for contender in order:
            reference = f"reference: {contender.reference}"
            for i in range(PAIRS[contender.kind]):
                call, other = _pair(loops[contender.id], loops[reference], first=i % 2 == 0)
                if round_:  # the first is for warming up
                    samples[contender.id].append(call)
                    samples[reference].append(other)
                    beside[contender.id].append(other)
        gc.collect()
    rows = _rows(samples, beside)
    with capsys.disabled():
        print("\n" + _table(rows))
    if os.environ.get("VACCEL_BENCH_WRITE") == "1":
        figures = {"rounds": ROUNDS, "pairs_a_round": PAIRS, "clock": "thread_time", "threads": 1, "blocks": BLOCKS}
        figures["latents"] = list(LATENTS.shape)
        name = "overhead" if BLOCKS == 4 else f"overhead_{BLOCKS}_blocks"
        folder = Path(os.environ["VACCEL_BENCH_OUT"]) if "VACCEL_BENCH_OUT" in os.environ else None
        device = DEVICE if DEVICE == "cpu" else gpu()
        write(name, {**figures, "contenders": rows}, device, command=COMMAND, folder=folder)
