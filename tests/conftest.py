"""One thread a test process: the tensors are tiny, and the machine may be shared."""

import pytest
import tiny
import torch

import vaccel

torch.set_num_threads(1)

#: A polynomial that makes TeaCache skip on the tiny random models.
COEFFICIENTS = (1.0, 0.0)


def pytest_collection_modifyitems(items):
    """Tests for a GPU are skipped where there is none; where there is one, a missing kernel is a failure."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def wan():
    return tiny.wan_pipeline()


@pytest.fixture
def small():
    return tiny.wan_small()


@pytest.fixture
def skipping_methods():
    """One config a method, each of which skips some steps of 20 on the tiny pipelines."""
    return [
        vaccel.DirectionMagnitude(threshold=0.005),
        vaccel.SRDiffusion(threshold=0.05),
        vaccel.SRDiffusion(threshold=0.05, rendering=vaccel.TeaCache(threshold=0.5, coefficients=COEFFICIENTS)),
        vaccel.TeaCache(threshold=0.6, coefficients=COEFFICIENTS),
        vaccel.Schedule([0, 1, 2, 6, 10, 19], num_steps=20),
        vaccel.Schedule([0, 1, 2, 6, 10, 19], num_steps=20, reuse="residual"),
        vaccel.LeMiCa((0, 1, 2, 6, 10, 19), 20),
        vaccel.MixCache(theta=1.0, d1=0.3, d2=0.6, cfg_impact=0.1),
        vaccel.MixCache(theta=1.0, d1=0.3, d2=0.6, cfg_impact=0.1, block_branches="both"),
        vaccel.Forecast((0, 1, 2, 6, 10, 19), 20),
        vaccel.EasyCache(threshold=0.3, warmup=3),
    ]
