"""The methods against independent loops: same decision at every step, same latents at the end.

The thresholds are chosen so that both kinds of steps occur and no decision is close to falling the other way; both are
asserted, for a case that has become trivial or a toss-up tests nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import oracle
import pytest
import tiny
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from pairs import pairs

import vaccel

ONE = "a red cat runs"
TWO = ["a red cat runs", "a blue dog sleeps"]
SEED = 11
STEPS = 20
TOLERANCE = 1e-5
# A decision is a comparison of fp32 measurements, good to about 1e-6.
MARGIN = 1e-3


def euler(shift: float = 3.0) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def dpm(shift: float = 3.0) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def cog_ddim(**kwargs: Any) -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler(prediction_type="v_prediction", **kwargs)


def cog_dpm() -> CogVideoXDPMScheduler:
    """As the released models have it: no signal left at the first step."""
    return CogVideoXDPMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )


# "early": the large moves come first, so that the relative change of the latents falls, as the signal "latents" needs.
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "unipc": tiny.unipc,
    "euler": euler,
    "dpm": dpm,
    "cog-ddim": cog_ddim,
    "cog-dpm": cog_dpm,
    "unipc-early": partial(tiny.unipc, 0.2),
    "euler-early": partial(euler, 0.2),
    "dpm-early": partial(dpm, 0.2),
    "cog-ddim-early": partial(cog_ddim, snr_shift_scale=0.3),
    "wan-epsilon": DPMSolverMultistepScheduler,
}
SOLVERS = ["unipc", "euler", "dpm", "cog-ddim", "cog-dpm"]


def pipeline(solver: str) -> tuple[Any, torch.nn.Module]:
    """A pipeline and its small model; every call gives new modules with the same weights."""
    if solver.startswith("cog"):
        return tiny.cog_pipeline(SCHEDULERS[solver]()), tiny.cog_small()
    return tiny.wan_pipeline(SCHEDULERS[solver]()), tiny.wan_small()


@torch.no_grad()
def oracle_task(solver: str, prompt: str | list[str], guidance: float, steps: int) -> oracle.Task:
    """The run that ``tiny.latents`` starts, up to its loop, on modules of its own."""
    pipe, small = pipeline(solver)
    cog = solver.startswith("cog")
    call = tiny.COG_CALL if cog else tiny.WAN_CALL
    batch = 1 if isinstance(prompt, str) else len(prompt)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(batch)]
    generator = generators[0] if isinstance(prompt, str) else generators
    cond, uncond = pipe.encode_prompt(
        prompt, do_classifier_free_guidance=guidance > 1, max_sequence_length=call["max_sequence_length"]
    )
    size = (call["height"], call["width"])
    channels = pipe.transformer.config.in_channels
    if cog:
        latents = pipe.prepare_latents(
            batch, channels, call["num_frames"], *size, torch.float32, torch.device("cpu"), generator
        )
        rotary = pipe._prepare_rotary_positional_embeddings(*size, latents.shape[1], torch.device("cpu"))
    else:
        latents = pipe.prepare_latents(
            batch, channels, *size, call["num_frames"], torch.float32, torch.device("cpu"), generator
        )
        rotary = None
    return oracle.Task(
        large=pipe.transformer,
        small=small,
        scheduler=pipe.scheduler,
        latents=latents,
        cond=cond,
        uncond=uncond,
        guidance=guidance,
        steps=steps,
        generator=generator,
        batched=cog,
        rotary=rotary,
    )


@dataclass
class Pair:
    """A method and the loop it is held against.

    Attributes:
        letters: every letter its timeline must show.
        small: whether it has a use for a small model.
    """

    method: vaccel.Method
    loop: Callable[[oracle.Task], oracle.Run]
    letters: str
    small: bool = True


def direction(threshold: float, letters: str = "Fms", **options: Any) -> Pair:
    return Pair(
        vaccel.DirectionMagnitude(threshold=threshold, **options),
        partial(oracle.direction_magnitude, threshold=threshold, **options),
        letters,
    )


def switching(threshold: float, rendering: dict[str, Any] | None = None, **options: Any) -> Pair:
    return Pair(
        vaccel.SRDiffusion(threshold, rendering=vaccel.TeaCache(**rendering) if rendering else None, **options),
        partial(oracle.sr_diffusion, threshold=threshold, rendering=rendering, **options),
        "Fsr" if rendering else "Fs",
    )


def tea(threshold: float, **options: Any) -> Pair:
    return Pair(
        vaccel.TeaCache(threshold, **options),
        partial(oracle.tea_cache, threshold=threshold, **options),
        "Fr",
        small=False,
    )


def check(
    pair: Pair,
    solver: str,
    *,
    prompt: str | list[str] = ONE,
    guidance: float = 5.0,
    steps: int = STEPS,
    dynamic: bool = False,
) -> oracle.Run:
    """Runs both and compares; returns the oracle's run."""
    task = oracle_task(solver, prompt, guidance, steps)
    task.dynamic = dynamic
    expected = pair.loop(task)
    assert set(expected.timeline) == set(pair.letters), expected.timeline
    assert min(expected.margins, default=1.0) > MARGIN, (min(expected.margins), expected.timeline)

    pipe, small = pipeline(solver)
    with vaccel.accelerate(pipe, pair.method, small=small if pair.small else None) as handle:
        extra = {"use_dynamic_cfg": True} if dynamic else {}
        actual = tiny.latents(pipe, prompt, steps=steps, seed=SEED, guidance=guidance, **extra)
        timeline = handle.trace.timeline()
    assert timeline == expected.timeline
    error = (actual - expected.latents).double().norm() / expected.latents.double().norm()
    assert error < TOLERANCE, f"{error:.2e} at {timeline}"
    return expected


def is_cog(solver: str) -> bool:
    return solver.startswith("cog")


DIRECTION = {"unipc": 0.03, "euler": 0.03, "dpm": 0.03, "cog-ddim": 0.003, "cog-dpm": 0.3}
# A cubic whose coefficients give other distances in any other order.
COEFFICIENTS = (0.5, -0.25, 1.0, 0.02)

guidances = pytest.mark.parametrize("guidance", [5.0, 1.0], ids=["cfg", "no-cfg"])
solvers = pytest.mark.parametrize("solver", SOLVERS)


def runs(name: str, values: list[Any], ids: list[str] | None = None) -> pytest.MarkDecorator:
    """Solvers, guidance and an option of the method in pairs.

    Solver and guidance meet in the code that steps, guidance and option in the method, solver and option in the noise
    levels the option reads: no two of them that the full product runs are left out.  A third one changes none of it.
    """
    names = dict(zip(map(str, values), ids or map(str, values), strict=True))
    chosen = [
        pytest.param(solver, guidance, value, id=f"{names[str(value)]}-{'cfg' if guidance > 1 else 'no-cfg'}-{solver}")
        for solver, guidance, value in pairs(SOLVERS, [5.0, 1.0], values)
    ]
    return pytest.mark.parametrize(("solver", "guidance", name), chosen)


# --- the oracle itself ----------------------------------------------------------------------------------------------


@runs("prompt", [ONE, TWO], ["one", "two"])
def test_oracle_without_a_method_is_the_pipeline(solver: str, guidance: float, prompt: str | list[str]) -> None:
    actual = oracle.full(oracle_task(solver, prompt, guidance, 12)).latents
    pipe, _ = pipeline(solver)
    expected = tiny.latents(pipe, prompt, steps=12, seed=SEED, guidance=guidance)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("solver", ["unipc", "cog-ddim"])
@pytest.mark.parametrize("which", ["large", "small"])
@torch.no_grad()
def test_oracle_forwards_are_the_models(solver: str, which: str) -> None:
    task = oracle_task(solver, TWO, 5.0, 12)
    model, t = getattr(task, which), torch.tensor(437)
    expected = oracle.evaluate(model, task, task.latents, t, task.names)
    actual, residuals = oracle.evaluate_stack(model, task, task.latents, t, None)
    again, _ = oracle.evaluate_stack(model, task, task.latents, t, residuals)
    for name in ("cond", "uncond"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again[name], expected[name], rtol=1e-5, atol=1e-6)


# --- DirectionMagnitude ---------------------------------------------------------------------------------------------


@runs("magnitude", ["small", "cached", "projection"])
def test_direction_magnitude(solver: str, guidance: float, magnitude: str) -> None:
    run = check(direction(DIRECTION[solver], magnitude=magnitude), solver, guidance=guidance)
    assert "mF" in run.timeline  # the error reached the threshold, and the range went on


@solvers
def test_direction_magnitude_without_cfg_reuse(solver: str) -> None:
    run = check(direction(DIRECTION[solver], cfg_reuse=False), solver)
    assert "mF" in run.timeline


@pytest.mark.parametrize("solver", ["unipc", "cog-dpm"])
def test_direction_magnitude_with_other_numbers_of_steps(solver: str) -> None:
    run = check(direction(DIRECTION[solver]), solver, steps=14)  # 2.8 and 13.3
    assert run.timeline.index("m") == 3
    assert run.timeline.index("s") == 13


def test_direction_magnitude_ranges_survive_floating_noise() -> None:
    assert 0.14 * 50 > 7
    assert 0.58 * 50 < 29
    run = check(direction(0.03, first=0.14, last=0.58), "unipc", steps=50)
    assert run.timeline.index("m") == 7
    assert run.timeline.index("s") == 29


@pytest.mark.parametrize("solver", ["unipc", "cog-ddim"])
def test_direction_magnitude_at_threshold_zero(solver: str) -> None:
    """The first substituted step adds nothing to the error, the second is tested before it does."""
    run = check(direction(0.0), solver)
    assert run.timeline == "FFFF" + "mmF" * 5 + "s"


def test_direction_magnitude_up_to_the_end() -> None:
    check(direction(0.03, "Fm", first=0.1, last=1.0), "euler", steps=12)


# --- SRDiffusion ----------------------------------------------------------------------------------------------------


@runs("signal", ["prediction", "denoised"])
def test_sr_diffusion(solver: str, guidance: float, signal: str) -> None:
    if is_cog(solver):
        pair = switching({"prediction": 0.01, "denoised": 0.02}[signal], fix_steps=8, signal=signal)
    else:
        pair = switching({"prediction": 0.04, "denoised": 0.02}[signal], fix_steps=7, signal=signal)
    check(pair, solver, guidance=guidance)


@pytest.mark.parametrize(
    ("threshold", "fix_steps"),
    [
        pytest.param(0.0325, 12, id="tanh"),  # without it the first drop is above the threshold
        pytest.param(0.02, 10, id="denominator"),  # relative to the new signal an earlier drop is below
        pytest.param(0.005, 5, id="guided"),  # of the conditional branch alone the deciding drop is negative
        pytest.param(0.005, 6, id="fix-steps"),  # the deciding drop is that of the first step allowed to decide
        pytest.param(0.005, 7, id="fix-steps-later"),  # and here of the last one that is not
    ],
)
def test_sr_diffusion_measures_the_change_exactly(threshold: float, fix_steps: int) -> None:
    check(switching(threshold, fix_steps=fix_steps), "unipc")


@guidances
@pytest.mark.parametrize(
    ("solver", "threshold", "fix_steps"),
    [
        ("unipc-early", 0.002, 5),
        ("euler-early", 0.002, 5),
        ("dpm-early", 0.002, 5),
        ("unipc", 0.001, 7),
        ("cog-ddim-early", 0.004, 6),
        ("cog-dpm", 0.02, 6),
    ],
)
def test_sr_diffusion_on_latents(solver: str, threshold: float, fix_steps: int, guidance: float) -> None:
    check(switching(threshold, fix_steps=fix_steps, signal="latents"), solver, guidance=guidance)


@solvers
@guidances
def test_sr_diffusion_with_teacache_rendering(solver: str, guidance: float) -> None:
    rendering = {"threshold": 0.3 if is_cog(solver) else 1.0, "coefficients": COEFFICIENTS}
    if is_cog(solver):
        pair = switching(0.01, rendering, fix_steps=8)
    else:
        pair = switching(0.04, rendering, fix_steps=7)
    run = check(pair, solver, guidance=guidance)
    assert "rs" in run.timeline[:-1]  # computed again before the last step forces it


def test_sr_diffusion_with_teacache_rendering_in_retention_mode() -> None:
    """The five steps it forces are the rendering's first; the last one is not forced."""
    rendering = {"threshold": 0.8, "coefficients": COEFFICIENTS, "retention": True}
    run = check(switching(0.04, rendering, fix_steps=7), "unipc")
    assert run.timeline[run.timeline.index("s") :].startswith("sssssr")


@pytest.mark.parametrize("signal", ["prediction", "denoised"])
def test_sr_diffusion_under_changing_guidance(signal: str) -> None:
    """CogVideoX's dynamic guidance: the signal is made with each step's own scale."""
    check(switching(0.095, fix_steps=6, signal=signal), "cog-ddim", guidance=6.0, dynamic=True)


# --- TeaCache -------------------------------------------------------------------------------------------------------


@runs("retention", [False, True], ["plain", "retention"])
def test_teacache(solver: str, guidance: float, retention: bool) -> None:
    threshold = 1.0 if is_cog(solver) else 0.8 if retention else 1.5
    run = check(tea(threshold, coefficients=COEFFICIENTS, retention=retention), solver, guidance=guidance)
    assert "rF" in run.timeline[:-1]


def test_teacache_in_retention_mode_may_end_on_a_reused_step() -> None:
    run = check(tea(1.1, coefficients=COEFFICIENTS, retention=True), "unipc")
    assert run.timeline.startswith("FFFFFr")
    assert run.timeline.endswith("r")


def test_teacache_with_a_polynomial_that_turns_negative() -> None:
    check(tea(0.2, coefficients=(1.0, -0.7)), "unipc")


@pytest.mark.filterwarnings("ignore:vaccel")
@pytest.mark.parametrize("retention", [False, True], ids=["plain", "retention"])
def test_teacache_at_threshold_zero_computes_every_step(retention: bool) -> None:
    pair = tea(0.0, coefficients=(-1.0, 0.0), retention=retention)
    pair.letters = "F"
    check(pair, "unipc", steps=12)


# --- two prompts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "guidance", "pair"),
    [
        pytest.param("unipc", 5.0, direction(0.03), id="direction-unipc"),
        pytest.param("euler", 1.0, direction(0.3), id="direction-euler-no-cfg"),
        pytest.param("cog-dpm", 5.0, direction(0.1, cfg_reuse=False), id="direction-cog-dpm"),
        pytest.param("cog-ddim", 5.0, direction(0.003, magnitude="projection"), id="projection-cog-ddim"),
        pytest.param("unipc", 5.0, switching(0.01), id="switching-unipc"),
        pytest.param("cog-dpm", 5.0, switching(0.01), id="switching-cog-dpm"),
        pytest.param("dpm", 1.0, switching(0.02, fix_steps=7, signal="denoised"), id="switching-dpm-no-cfg"),
        pytest.param(
            "cog-ddim",
            5.0,
            switching(0.01, {"threshold": 0.3, "coefficients": COEFFICIENTS}, fix_steps=8),
            id="switching-rendering-cog-ddim",
        ),
        pytest.param("dpm", 5.0, tea(1.5, coefficients=COEFFICIENTS), id="teacache-dpm"),
        pytest.param("cog-ddim", 5.0, tea(1.0, coefficients=COEFFICIENTS), id="teacache-cog-ddim"),
    ],
)
def test_two_prompts(solver: str, guidance: float, pair: Pair) -> None:
    check(pair, solver, prompt=TWO, guidance=guidance)
