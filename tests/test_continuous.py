"""Continuous batching: every request is what it would be alone, whoever comes and goes beside it."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from continuous_requests import Request, exact, requests, serve
from hypothesis import given, settings
from hypothesis import strategies as st

import vaccel
from vaccel.actions import ACTIONS

# -- each as alone -----------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_the_engine_alone_is_the_loop_written_down():
    """What the others are compared with, for two methods, in plain arithmetic."""
    model, steps = exact(1.0), 8
    for reuse in (False, True):
        computed = range(0, steps, 3) if reuse else range(steps)
        request = Request(5, vaccel.Schedule(computed, num_steps=steps, reuse="residual"), steps)
        x, kept = request.x, {}
        for i in range(steps):
            t, v = (request.times[i] * 1000).expand(1), {}
            for name, condition in (("c", request.cond), ("u", request.uncond)):
                if i in computed:
                    v[name] = model(x, t, condition)
                    kept[name] = v[name] - x
                else:
                    v[name] = x + kept[name]
            x = x + (request.times[i + 1] - request.times[i]) * (v["u"] + 3.0 * (v["c"] - v["u"]))
        torch.testing.assert_close(request.alone()[0], x, rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"max_rows": 3}, {"max_rows": 7, "pad": True}], ids=str)
def test_every_request_is_as_alone(options):
    wanted = requests()
    expected = {r.seed: r.alone() for r in wanted}
    server = vaccel.BatchedDenoiser(exact(1.0), exact(0.9), **options)
    runs = serve(server, wanted)
    letters = set()
    for request in wanted:
        x, timeline = expected[request.seed]
        assert runs[request.seed].trace.timeline() == timeline
        assert torch.equal(request.x, x), request
        assert runs[request.seed].over
        assert runs[request.seed].trace.finished
        letters |= set(timeline)
    assert letters >= set("Frgsopm")


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 10**6))
def test_whatever_the_order(seed):
    wanted = requests(seed)[: 2 + seed % 12]
    expected = {r.seed: r.alone() for r in wanted}
    serve(vaccel.BatchedDenoiser(exact(1.0), exact(0.9)), wanted, seed=seed)
    assert all(torch.equal(r.x, expected[r.seed][0]) for r in wanted)


def test_the_steps_that_need_the_model_share_its_forwards():
    sizes = []

    def counted(x, t, condition):
        sizes.append(len(x))
        assert t.shape == (len(x),)
        return exact(1.0)(x, t, condition)

    steps = 8
    wanted = [Request(n, vaccel.Forecast((0, 1, 4), steps), steps, joins=n % 2) for n in range(6)]
    serve(vaccel.BatchedDenoiser(counted), wanted)
    # Three begin at once and three a step later: their steps 0, 1 and 4, two rows each.
    assert sizes == [6, 12, 6, 6, 6]
    sizes.clear()
    serve(vaccel.BatchedDenoiser(counted, max_rows=4, pad=True), [dataclasses.replace(r, joins=0) for r in wanted])
    assert sizes == [4, 4, 4] * 3


def test_every_action_says_what_it_will_ask_for():
    """Steps that call a model and do not say so would be computed one by one, unnoticed."""
    alone, forwards = [], {"Full": 1, "Small": 1, "Guidance": 1, "Rescale": 1}
    for kind in ACTIONS.values():
        if kind.__name__ in forwards:
            assert kind().forwards(2)
        elif not kind.forwards(kind, 2):
            alone.append(kind.__name__)
    # What of these calls a model reaches inside it, which no callable shows, or switches weights.
    assert sorted(alone) == ["Expert", "Forecast", "Output", "Residual", "Resume"]


def test_several_shapes_conditions_and_precisions_in_one_batch():
    seen = []

    def model(x, t, condition):
        seen.append((x.dtype, x.shape[2:], len(x)))
        return x * 0.5 + condition["text"][0].to(x.dtype).view(len(x), -1, *(1,) * (x.ndim - 2))

    server, method = vaccel.BatchedDenoiser(model), vaccel.Schedule([0], num_steps=2, reuse="residual")
    entries = []
    for dtype, size in ((torch.float32, 5), (torch.float64, 5), (torch.float32, 6), (torch.float32, 5)):
        x = torch.ones(1, 4, 3, size, dtype=dtype)
        text = {"text": [torch.ones(1, 4)], "scale": 2, "mask": None}
        entries.append((server.run(2, method), 0, torch.tensor([900.0]), x, text, None))
    outputs = server.step(entries)
    assert sorted(n for *_, n in seen) == [1, 1, 2]
    assert all(torch.equal(o, e[3] * 0.5 + 1) for o, e in zip(outputs, entries, strict=True))


def test_a_real_transformer_within_the_rounding_of_a_batch():
    """A batch of a transformer rounds otherwise than a row alone; so much, enlarged by the run, may be between them.

    In fp64 a forward's own rounding is measured, batch against rows; the run enlarges an error of every output by what
    a run does with outputs that are off by exactly that.
    """
    transformer = tiny.wan_transformer(layers=2).double()
    model = lambda x, t, c: transformer(x, t, c, return_dict=False)[0]  # noqa: E731
    steps, made = 10, torch.Generator().manual_seed(0)
    x, cond, uncond = (torch.randn(3, *shape, generator=made, dtype=torch.float64)
                       for shape in ((16, 2, 4, 4), (8, 32), (8, 32)))  # fmt: skip
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    reusing = vaccel.Schedule(range(0, steps, 2), num_steps=steps, reuse="residual")
    chosen = [vaccel.Forecast((0, 1, 4, 7), steps), reusing, vaccel.EasyCache(0.5, 2)]
    with torch.no_grad():
        t = torch.full((6,), 700.0, dtype=torch.float64)
        joined, texts = torch.cat([x, x]), torch.cat([cond, uncond])
        rows = torch.cat([model(joined[n : n + 1], t[:1], texts[n : n + 1]) for n in range(6)])
        rounding = float((model(joined, t, texts) - rows).abs().max())
    unit = max(rounding, torch.finfo(torch.float64).eps * float(rows.abs().max()))

    def alone(n, off):
        moved = torch.Generator().manual_seed(n)
        shaken = lambda *a: (out := model(*a)) + off * (torch.randint(0, 2, out.shape, generator=moved) * 2 - 1)  # noqa: E731
        denoiser, y = vaccel.Denoiser(shaken, method=chosen[n], guidance=4.0), x[n : n + 1]
        with denoiser.run(steps) as run:
            for i in range(steps):
                y = y + (times[i + 1] - times[i]) * run.step(i, times[i : i + 1] * 1000, y, cond[n : n + 1],
                                                             uncond[n : n + 1])  # fmt: skip
        return y

    server = vaccel.BatchedDenoiser(model)
    runs, ys = [server.run(steps, method, guidance=4.0) for method in chosen], [x[n : n + 1] for n in range(3)]
    for i in range(steps):
        entries = [(run, i, times[i] * 1000, y, cond[n : n + 1], uncond[n : n + 1])
                   for n, (run, y) in enumerate(zip(runs, ys, strict=True))]  # fmt: skip
        ys = [y + (times[i + 1] - times[i]) * v for y, v in zip(ys, server.step(entries), strict=True)]
    for n in range(3):
        plain = alone(n, 0.0)
        # 1000 units, so that what the run makes of them stands out of its own rounding; 4 for other signs of the shakes
        bound = 4 * float((alone(n, 1000 * unit) - plain).abs().max()) / 1000
        assert float((ys[n] - plain).abs().max()) <= max(bound, 4 * unit)
