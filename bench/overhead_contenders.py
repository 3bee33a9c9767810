"""The contenders of ``bench_overhead.py``: one tiny Wan transformer bare, and under vaccel and its peers."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import HookRegistry, ModelHook
from tiny import unipc, wan_pipeline, wan_small, wan_transformer
from torch import nn

import vaccel

try:
    import cache_dit
except ImportError:  # the comparison is then without it
    cache_dit = None

STEPS = 50
TIMED = range(5, STEPS - 1)  # past everybody's warm-up, short of the run's end
BLOCKS = int(os.environ.get("VACCEL_BENCH_BLOCKS", "4"))
#: Where the models are.  On a GPU it is still the host's time that is measured: nothing waits for the device.
DEVICE = os.environ.get("VACCEL_BENCH_DEVICE", "cpu")
LATENTS = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
TEXT = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE)
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

    def timed(self) -> float:
        """Microseconds of the next call, of the thread's own processor time."""
        self.prepare()
        if DEVICE != "cpu":
            torch.cuda.synchronize()  # a queue that is full makes the host wait
        start = time.thread_time_ns()
        self()
        return (time.thread_time_ns() - start) / 1000

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


def vaccel_loop(method: vaccel.methods.Method, family: str | None = None) -> Loop:
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
    return vaccel_loop(vaccel.Schedule(range(full), num_steps=STEPS, reuse=reuse))


def _forecast(full: int) -> Loop:
    return vaccel_loop(vaccel.Forecast(tuple(range(full)), num_steps=STEPS))


def _teacache(distance: float) -> Loop:
    """Every step adds ``distance`` to what is tolerated up to 0.5, whatever the embeddings say."""
    return vaccel_loop(vaccel.TeaCache(threshold=0.5, coefficients=(0.0, 0.0, 0.0, 0.0, distance)))


def _easycache(threshold: float) -> Loop:
    return vaccel_loop(vaccel.EasyCache(threshold, warmup=2))


def _mixcache(theta: float, **settings: Any) -> Loop:
    """Never out of its warm-up, or in one long cycle after it."""
    return vaccel_loop(vaccel.MixCache(theta=theta, interval=2 * STEPS, penalty=False, **settings))


def _rescaled(first: float) -> Loop:
    return vaccel_loop(vaccel.DirectionMagnitude(threshold=ALWAYS, first=first, last=1.0))


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
