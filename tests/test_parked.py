"""Hidden states in host memory, or in fewer bits, between the calls that write and read them."""

from __future__ import annotations

import pytest
import tiny
import torch
from zoo import generate, load_all

import vaccel
from vaccel.cache import Buffers
from vaccel.cache.parked import DTYPES, Parked, Parking

BLOCKS = vaccel.Schedule([0, 1, 4, 8], num_steps=12)
STATES = vaccel.Schedule.from_timeline("FFbFbbFbFFFF")
CASES = load_all()
#: Several lists of blocks, text within them, tokens before rows, frames as rows, both residuals one behind the other.
KINDS = (
    "FluxPipeline", "HunyuanVideoPipeline", "Lumina2Pipeline", "ErnieImagePipeline", "LattePipeline", "LTX2Pipeline",
)  # fmt: skip
#: Half the distance of neighbouring values, relative to a value: what rounding costs at the most.
UNIT = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float8_e4m3fn: 2**-4, torch.float8_e5m2: 2**-3}


def parked(dtype: torch.dtype, rows: torch.Tensor) -> tuple[Parked, torch.Tensor]:
    buffers = Buffers(Parking(dtype=dtype))
    buffers.begin()
    made = buffers.large("x", rows)
    made.write(rows)
    return made, made.read(rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_is_what_was_written_but_for_rounding(dtype):
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 7)[:, None]
    if dtype is torch.float16:  # which has no scales: what it cannot hold is the user's to know
        x = x.clamp(-6e4, 6e4) * (x.abs() > 1e-4)
    made, read = parked(dtype, x)
    # Eight bits are scaled by row: what is below the row's smallest normal value is off by at most half a step there.
    tiny_of = torch.finfo(dtype).smallest_normal
    floor = x.abs().amax(-1, keepdim=True) * (tiny_of / torch.finfo(dtype).max if dtype.itemsize == 1 else 0)
    assert ((read - x).abs() <= UNIT[dtype] * torch.maximum(x.abs(), floor) * (1 + 1e-6)).all()
    assert read.dtype == x.dtype
    off = float((read - x).norm() / x.norm())
    assert float(made.error) == pytest.approx(off, rel=1e-5)
    assert torch.equal(made[1:].read(x), read[1:])


def test_a_row_of_nothing_and_the_largest_of_a_row():
    x = torch.zeros(3, 8)
    x[1, 2], x[2, 0] = 1e30, -3e-30
    _, read = parked(torch.float8_e4m3fn, x)
    torch.testing.assert_close(read, x, rtol=2**-23, atol=0)


@pytest.mark.parametrize("method", [BLOCKS, STATES], ids=["blocks", "states"])
@pytest.mark.parametrize("name", ["wan", "cogvideox", "qwen-image"])
def test_host_memory_changes_nothing(name, method):
    pipe, _ = tiny.family(name)
    with vaccel.accelerate(pipe, method) as handle:
        expected, timeline, held = tiny.latents(pipe), handle.trace.timeline(), handle.nbytes
    with vaccel.accelerate(pipe, method, cache_device="cpu") as handle:
        plan = handle.memory_plan(**tiny.arguments(pipe, steps=12))
        for _ in range(2):  # the second run finds the first one's buffers
            assert torch.equal(tiny.latents(pipe), expected)
            assert handle.trace.timeline() == timeline
        assert handle.nbytes == plan["total"] < held
        assert plan["total"] + plan["host"] == held


@pytest.mark.parametrize("method", [BLOCKS, STATES], ids=["blocks", "states"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_fewer_bits_cost_what_the_trace_says(wan, dtype, method):
    with vaccel.accelerate(wan, method) as handle:
        expected, held = tiny.latents(wan), handle.nbytes
    with vaccel.accelerate(wan, method, cache_dtype=dtype) as handle:
        plan = handle.memory_plan(**tiny.arguments(wan, steps=12))
        found = tiny.latents(wan)
        assert handle.nbytes == plan["total"] < held
        (said,) = [note for note in handle.trace.notes if "relative L2" in note]
    assert 0 < float(said.split()[-1]) <= UNIT[dtype]
    assert not torch.equal(found, expected)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("method", [BLOCKS, STATES], ids=["blocks", "states"])
def test_a_loop_of_ones_own(method):
    model, generator = tiny.wan_transformer(), torch.Generator().manual_seed(5)
    x, cond, uncond = (torch.randn(size, generator=generator) for size in ((1, 16, 3, 4, 4), (1, 8, 32), (1, 8, 32)))

    def ours(**kept):
        denoiser, y = vaccel.Denoiser(model, method=method, guidance=4.0, **kept), x
        for _ in range(2):
            y = x
            with denoiser.run(12) as run:
                for i in range(12):
                    y = y - run.step(i, 1000 - 80 * i, y, cond, uncond) / 12
        return y, run.trace.notes

    expected, _ = ours()
    found, notes = ours(cache_device="cpu")
    assert torch.equal(found, expected)
    assert not notes
    found, (said,) = ours(cache_dtype=torch.bfloat16)
    assert 0 < float(said.split()[-1]) <= UNIT[torch.bfloat16]
    assert 0 < (found - expected).norm() < 0.1 * expected.norm()
    with pytest.raises(ValueError, match="cache_dtype"):
        ours(cache_dtype=torch.int8)


@pytest.mark.parametrize("name", KINDS)
def test_families_read_what_they_wrote(name):
    case, pipe = CASES[name], CASES[name].build()
    for timeline in ("FrFrrF", "FFbFbF"):
        method = vaccel.Schedule.from_timeline(timeline)
        with vaccel.accelerate(pipe, method):
            expected = generate(case, pipe)
        with vaccel.accelerate(pipe, method, cache_device="cpu") as handle:
            assert all(map(torch.equal, generate(case, pipe), expected))
            assert handle.trace.timeline() == timeline


def test_the_trace_says_where_there_is_nothing_to_park(wan):
    method = vaccel.Forecast.shaped(12, 5)
    with vaccel.accelerate(wan, method) as handle:
        expected = tiny.latents(wan)
    with vaccel.accelerate(wan, method, cache_device="cpu", cache_dtype=torch.float8_e4m3fn) as handle:
        assert torch.equal(tiny.latents(wan), expected)
        assert any("nothing to park" in note for note in handle.trace.notes)


@pytest.mark.parametrize(
    "given", [{"cache_device": "cuda"}, {"cache_device": 3}, {"cache_dtype": torch.float32}, {"cache_dtype": "fp8"}]
)
def test_other_places_and_dtypes_are_refused(wan, given):
    with pytest.raises(ValueError, match=next(iter(given))):
        vaccel.accelerate(wan, BLOCKS, **given)
    vaccel.accelerate(wan, BLOCKS).remove()


def test_compiled(wan):
    with vaccel.accelerate(wan, BLOCKS, cache_dtype=torch.bfloat16) as handle:
        expected = tiny.latents(wan)
    with vaccel.accelerate(wan, BLOCKS, cache_dtype=torch.bfloat16, compile=True) as handle:
        torch.testing.assert_close(tiny.latents(wan), expected, rtol=1e-3, atol=1e-3)
        assert handle.trace.timeline().count("F") == 4
