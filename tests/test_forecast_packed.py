"""Forecasts of packed tokens: a weight a channel and none a token, guidance inside the model, what is not denoised."""

from __future__ import annotations

import oracle_forecast as oracle
import pytest
import torch
from beyond import forecast_by_hand, record, weighed
from forecast_loops import distance
from test_oracle import TOLERANCE
from zoo.base import generate, load_all

import vaccel
from vaccel.methods.recording import Recording
from vaccel.models.channel_axis import axis_of
from vaccel.planning.calibration import calibration, sample_of


@pytest.mark.parametrize("name", ["FluxPipeline", "QwenImagePipeline", "LTXPipeline", "Flux2Pipeline"])
def test_packed_tokens_have_a_weight_a_channel(name, tmp_path):
    """Not one a token; FLUX's guidance is a number inside the model beside that, one branch."""
    case = load_all()[name]
    pipe, path = case.build(), tmp_path / "packed.json"
    off = dict(case.guidance or {})
    recorded = record(pipe, lambda: generate(case, pipe, 8, **off), path)
    v = recorded.velocities
    assert recorded.channels.axis == -1
    assert calibration(path).gram.products.shape == (1, v.shape[-1], 8, 8)
    assert v.shape[-1] in (pipe.transformer.config.in_channels, pipe.transformer.config.out_channels)
    moved = v.double().numpy().swapaxes(0, 1).swapaxes(2, 3)  # [S, T, C, tokens]
    method = vaccel.Forecast.load(path, 4, correct=False)

    def rule(number, known, velocities, step):
        return weighed(velocities, oracle.coefficients(moved, known, step, "channel"), 2)

    calls = recorded_calls(pipe, case, off) // 8
    with forecast_by_hand([pipe.transformer], calls, method.full_steps, rule):
        expected = generate(case, pipe, 8, output_type="latent", **off)
    with vaccel.accelerate(pipe, method) as handle:
        made = generate(case, pipe, 8, output_type="latent", **off)
        assert handle.trace.calls["large"] == 4 * calls
    assert distance(made[0], expected[0]) < TOLERANCE


def recorded_calls(pipe, case, off):
    with vaccel.accelerate(pipe, Recording()) as handle:
        generate(case, pipe, 8, **off)
        return handle.trace.calls["large"]


def test_embedded_guidance_may_differ_from_the_calibrations(tmp_path):
    """It is an argument of the model like any other: one branch, forecast the same way at any scale."""
    case = load_all()["FluxPipeline"]
    pipe, path = case.build(), tmp_path / "flux.json"
    one = {**case.guidance, "output_type": "latent"}
    record(pipe, lambda: generate(case, pipe, 8, **one, guidance_scale=3.5), path)
    made = []
    for scale in (3.5, 7.0):
        with vaccel.accelerate(pipe, vaccel.Forecast.load(path, 4)) as handle:
            made.append(generate(case, pipe, 8, **one, guidance_scale=scale)[0])
            assert handle.trace.calls["large"] == 4
    assert not torch.equal(*made)


@pytest.mark.parametrize(
    ("shape", "config", "axis"),
    [((1, 4096, 64), {}, 2), ((1, 64, 1024), {}, 1), ((2, 16, 64), {"in_channels": 64}, 2),
     ((2, 16, 64), {"in_channels": 16, "out_channels": 16}, 1), ((2, 4, 8, 12), {}, 1), ((1, 3, 8, 8, 16), {}, 1),
     ((1, 3, 8, 8, 16), {"in_channels": 33, "out_channels": 16}, 4), ((1, 5, 16, 4, 4), {"out_channels": 16}, 2),
     ((3, 7), {"in_channels": 7}, 1), ((1, 8, 8), {}, 2), ((1, 1, 16, 3, 4, 4), {}, 2)],
)  # fmt: skip
def test_where_the_channels_of_an_unknown_models_latents_lie(shape, config, axis):
    assert axis_of(shape, config) == axis


@pytest.mark.parametrize(
    ("name", "share"),
    [("FluxKontextPipeline", 1 / 2), ("Flux2Pipeline-edit", 3 / 19), ("WanImageToVideoPipeline-ti2v", 2 / 3),
     ("LTXImageToVideoPipeline", 2 / 3), ("LTXPipeline", 1), ("MarigoldDepthPipeline", 1)],
)  # fmt: skip
def test_what_is_not_denoised_is_no_part_of_a_calibration(name, share):
    """A picture to be edited, a given first frame: the model answers for it too, and nobody takes that."""
    case = load_all()[name]
    pipe = case.build()
    recorded = record(pipe, lambda: generate(case, pipe, 4))
    still = (recorded.velocities == 0).all(dim=0)
    count = still[0].numel()
    assert int((~still).sum()) == pytest.approx(share * still.numel())
    gram, sample = sample_of(*recorded, bands=1)
    assert sample["elements"] == gram.elements == pytest.approx(share * count)
