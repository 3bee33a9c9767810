"""Requests a second of a server that batches continuously: ``pytest bench/bench_continuous.py -s``.

The shipped family's large transformer serves four prompts that join one step after another, 50 steps each, guided;
once with every step computed, once with Forecast by the family's calibration.  Beside the speed stands the PSNR of the
latents to those of every step computed, over their own range.  ``VACCEL_BENCH_WRITE=1`` writes
bench/results/<device>/continuous.json.
"""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from results import write

import vaccel
from vaccel.demo import family
from vaccel.planning.flow import Flow

STEPS, REQUESTS, GUIDANCE, ROUNDS = 50, 4, 4.0, 3
COLOURS = ("red", "blue", "green", "yellow")
PROMPTS = [f"a {colour} circle moves left slowly on a gray background" for colour in COLOURS]
WAYS = {
    "every step": lambda: vaccel.Schedule(range(STEPS), num_steps=STEPS, reuse="residual"),
    "Forecast, 17 of 50": lambda: vaccel.Forecast.load(family.shipped_folder() / "forecast.json", 17),
}


@pytest.fixture(scope="module")
def served() -> Any:
    return Served()


class Served:
    """The family's transformer and what four users ask of it."""

    def __init__(self) -> None:
        shipped = family.load()
        pipe, self.transformer = shipped.pipe, shipped.pipe.transformer
        encode = {
            "negative_prompt": "",
            "do_classifier_free_guidance": True,
            "device": "cpu",
            "max_sequence_length": 32,
        }
        with torch.no_grad():
            self.texts = [pipe.encode_prompt(prompt, **encode) for prompt in PROMPTS]
        pipe.scheduler.set_timesteps(STEPS)
        self.flow = Flow(tuple(map(float, pipe.scheduler.sigmas)))
        self.made: dict[str, tuple[torch.Tensor, float]] = {}
        channels = self.transformer.config.in_channels
        self.noise = [
            torch.randn(1, channels, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(REQUESTS)
        ]

    def model(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.transformer(x, t, text, return_dict=False)[0]

    def all(self, way: str) -> torch.Tensor:
        """Every request, from noise to latents, by Euler."""
        server, levels = vaccel.BatchedDenoiser(self.model), self.flow.levels
        method, xs, runs = WAYS[way](), list(self.noise), {}
        for tick in range(STEPS + REQUESTS - 1):
            live = [n for n in range(REQUESTS) if 0 <= tick - n < STEPS]
            for n in live:
                runs.setdefault(n, None)
                runs[n] = runs[n] or server.run(STEPS, method, guidance=GUIDANCE, flow=self.flow)
            entries = [(runs[n], tick - n, 1000 * levels[tick - n], xs[n], *self.texts[n]) for n in live]
            for n, v in zip(live, server.step(entries), strict=True):
                xs[n] = xs[n] + (levels[tick - n + 1] - levels[tick - n]) * v
        return torch.cat(xs)


@pytest.mark.parametrize("way", WAYS)
def test_throughput(benchmark: Any, served: Served, way: str) -> None:
    latents = benchmark.pedantic(served.all, args=(way,), rounds=ROUNDS)
    served.made[way] = latents, benchmark.stats.stats.median if benchmark.stats else math.nan


def test_speed_beside_fidelity(capsys: Any, served: Served) -> None:
    whole, rows = served.made["every step"][0], []
    for way, (latents, seconds) in served.made.items():
        off = float((latents - whole).square().mean().sqrt())
        psnr = 20 * math.log10(float(whole.max() - whole.min()) / off) if off else None
        rows.append({"way": way, "requests_per_second": REQUESTS / seconds, "latent_psnr_db": psnr})
    with capsys.disabled():
        for row in rows:
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    if os.environ.get("VACCEL_BENCH_WRITE") == "1":
        write("continuous", {"steps": STEPS, "requests": REQUESTS, "guidance": GUIDANCE, "rows": rows})
