"""Continuous batching: every request is what it would be alone, whoever comes, goes or fails beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import random
import sys
import threading
import weakref
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vaccel
from vaccel.actions import ACTIONS

SHAPE = (4, 3, 5)


def exact(scale: float):
    """A model whose rows are bit for bit the same in any batch: sums and products of single elements alone."""

    def model(x, t, condition):
        shape = (-1, *(1 for _ in SHAPE))
        drift, told = (t * (scale / 1000)).view(shape), condition["text"].view(len(x), SHAPE[0], 1, 1)
        return x * drift - x * x * 0.05 + told * scale

    return model


@dataclasses.dataclass
class Request:
    """What a user asks for, and what a loop of the server's makes of it."""

    seed: int
    method: vaccel.Method
    steps: int
    guidance: float = 3.0
    guided: bool = True
    rows: int = 1
    joins: int = 0

    def __post_init__(self):
        made = torch.Generator().manual_seed(self.seed)
        self.x = torch.randn(self.rows, *SHAPE, generator=made)
        self.cond, self.uncond = ({"text": torch.randn(self.rows, SHAPE[0], generator=made)} for _ in range(2))
        self.times = torch.linspace(1, 0, self.steps + 1)
        self.i, self.error = 0, None

    @property
    def entry(self) -> tuple[Any, ...]:
        return self.i, float(self.times[self.i] * 1000), self.x, self.cond, self.uncond if self.guided else None

    def take(self, v: torch.Tensor) -> None:
        self.x = self.x + (self.times[self.i + 1] - self.times[self.i]) * v
        self.i += 1

    def alone(self) -> tuple[torch.Tensor, str]:
        """By ``vaccel.Denoiser``, which knows of no batches."""
        own = dataclasses.replace(self)
        denoiser = vaccel.Denoiser(exact(1.0), exact(0.9), method=self.method, guidance=self.guidance)
        with denoiser.run(self.steps) as run:
            while own.i < self.steps:
                i, t, *rest = own.entry
                own.take(run.step(i, torch.tensor(t).expand(self.rows), *rest))
        return own.x, run.trace.timeline()


def methods(steps: int) -> list[vaccel.Method]:
    return [
        vaccel.Forecast((0, 1, *range(4, steps, 4)), steps),
        vaccel.Schedule(range(0, steps, 3), num_steps=steps, reuse="residual"),
        vaccel.Schedule.from_timeline(("FFggs" * steps)[:steps]),
        vaccel.Schedule.from_timeline(("FoFp" * steps)[:steps], reuse="forecast"),
        vaccel.EasyCache(3.0, 2),
        vaccel.DirectionMagnitude(threshold=0.3),
        vaccel.SRDiffusion(threshold=0.2),
        vaccel.Schedule(range(steps), num_steps=steps, reuse="residual"),
    ]


def requests(seed: int = 0) -> list[Request]:
    draw, found = random.Random(seed), []
    for n in range(16):
        steps = draw.randint(6, 14)
        found.append(Request(n, methods(steps)[n % 8], steps, draw.choice((1.0, 3.0, 5.5)), draw.random() < 0.7,
                             draw.randint(1, 2), draw.randint(0, 9)))  # fmt: skip
    return found


def serve(server, wanted, *, each=lambda tick, live, runs: None, seed=0):
    """A server's loop: requests join, make their steps in whatever order, and leave; their runs."""
    runs, waiting, live, tick = {}, list(wanted), [], 0
    order = random.Random(seed)
    while waiting or live:
        for request in [r for r in waiting if r.joins <= tick]:
            waiting.remove(request)
            runs[request.seed] = server.run(request.steps, request.method, guidance=request.guidance)
            live.append(request)
        order.shuffle(live)
        each(tick, live, runs)
        answers = server.step([(runs[r.seed], *r.entry) for r in live])
        for request, answer in zip(live, answers, strict=True):
            if isinstance(answer, Exception):
                request.error = answer
            else:
                request.take(answer)
        live = [r for r in live if r.error is None and r.i < r.steps]
        tick += 1
    return runs


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


# -- faults ------------------------------------------------------------------------------------------------------------


def failing(when):
    model = exact(1.0)

    def call(x, t, condition):
        if when(x, condition):
            raise RuntimeError("the model has failed")
        return model(x, t, condition)

    return call


def test_one_that_raises_leaves_the_others_right():
    """The model fails for one request's rows, in whatever batch they are."""
    wanted = requests(3)
    bad = wanted[0]
    text = bad.cond["text"][0, 0]
    expected = {r.seed: r.alone() for r in wanted}
    model = failing(lambda x, condition: bool((condition["text"][:, 0] == text).any()))
    runs = serve(vaccel.BatchedDenoiser(model, exact(0.9)), wanted)
    assert "the model has failed" in str(bad.error)
    assert runs[bad.seed].over
    assert not runs[bad.seed].trace.finished
    assert sys.version_info < (3, 11) or "in call\n" in bad.error.__notes__[0], "where it was raised is still known"
    for request in wanted[1:]:
        assert request.error is None
        assert torch.equal(request.x, expected[request.seed][0])


def test_a_fault_of_one_moment_is_survived():
    """A batch that fails, for want of memory say, is computed row by row."""
    calls, wanted = [], requests(4)
    expected = {r.seed: r.alone() for r in wanted}

    def now_and_then(x, condition):
        calls.append(len(x))
        return len(x) > 3

    serve(vaccel.BatchedDenoiser(failing(now_and_then), exact(0.9)), wanted)
    assert max(calls) > 3
    assert all(torch.equal(r.x, expected[r.seed][0]) for r in wanted)


def test_cancelled_requests_leave_the_others_right():
    wanted = requests(5)
    expected = {r.seed: r.alone() for r in wanted}
    gone = set()

    def cancel(tick, live, runs):
        if tick in (3, 5) and live:
            request = live[0]
            runs[request.seed].close()
            gone.add(request.seed)
            if tick == 5:  # one of which the server has heard in time
                live.remove(request)

    runs = serve(vaccel.BatchedDenoiser(exact(1.0), exact(0.9)), wanted, each=cancel)
    assert len(gone) == 2
    for request in wanted:
        if request.seed in gone:
            assert runs[request.seed].over
            assert request.error is None or "this run is over" in str(request.error)
        else:
            assert torch.equal(request.x, expected[request.seed][0])


def test_closed_by_another_thread_in_the_middle_of_its_step():
    method = vaccel.Forecast((0, 1, 4), 8)
    request, other = Request(1, method, 8), Request(2, method, 8)
    expected = other.alone()[0]
    runs = {}

    def model(x, t, condition):
        if other.i == 4:
            thread = threading.Thread(target=runs[1].close)
            thread.start()
            thread.join()
        return exact(1.0)(x, t, condition)

    server = vaccel.BatchedDenoiser(model)
    runs |= {r.seed: server.run(8, method, guidance=3.0) for r in (request, other)}
    for _ in range(8):
        live = [r for r in (request, other) if r.error is None]
        for r, answer in zip(live, server.step([(runs[r.seed], *r.entry) for r in live]), strict=True):
            if isinstance(answer, Exception):
                r.error = answer
            else:
                r.take(answer)
    assert "closed in the middle" in str(request.error)
    assert torch.equal(other.x, expected)
    assert runs[1]._run._buffers.nbytes == 0


def test_an_interruption_ends_the_runs_of_the_batch_and_no_others():
    def stopped(x, t, condition):
        if stop:
            raise KeyboardInterrupt
        return exact(1.0)(x, t, condition)

    stop, method = [], vaccel.Forecast((0, 1, 4), 8)
    server = vaccel.BatchedDenoiser(stopped)
    request, waiting = Request(1, method, 8), Request(2, method, 8)
    run, other = server.run(8, method, guidance=3.0), server.run(8, method, guidance=3.0)
    waiting.take(server.step([(other, *waiting.entry)])[0])
    stop.append(True)
    with pytest.raises(KeyboardInterrupt):
        server.step([(run, *request.entry)])
    assert run.over
    stop.clear()
    while waiting.i < 8:
        waiting.take(server.step([(other, *waiting.entry)])[0])
    assert torch.equal(waiting.x, Request(2, method, 8).alone()[0])


def test_nothing_is_left_of_a_request():
    """Finished, failed, cancelled or forgotten: the run, its buffers and what it was given die."""
    left = []
    text = torch.full((1, 4), 7.0)
    model = failing(lambda x, c: bool((c["text"] == 7.0).all(1).any()))
    server = vaccel.BatchedDenoiser(model, model)
    for fate in ("finished", "failed", "closed", "forgotten"):
        method = vaccel.DirectionMagnitude(threshold=0.3)
        request = Request(1, method, 6)
        beside = Request(2, method, 6)
        run, another = server.run(6, method, guidance=3.0), server.run(6, method, guidance=3.0)
        for tick in range(6):
            if fate == "failed" and tick == 2:
                request.cond = {"text": text}
            if fate == "closed" and tick == 3:
                run.close()
            live = [(r, q) for r, q in ((run, request), (another, beside)) if not r.over]
            if fate == "forgotten" and tick > 3:
                live = live[1:]
            for (_, q), answer in zip(live, server.step([(r, *q.entry) for r, q in live]), strict=True):
                if isinstance(answer, Exception):
                    q.error = answer
                else:
                    q.take(answer)
        assert (request.error is not None) == (fate == "failed")
        if fate != "forgotten":
            assert run._run._buffers.nbytes == 0
        kept = request.error  # a server may keep it, for its log
        left += [(fate, weakref.ref(run)), (fate, weakref.ref(run._run._run)), (fate, weakref.ref(beside.x))]
        del request, beside, run, another, live, answer, q
        gc.collect()
        assert [fate for fate, ref in left if ref() is not None] == [], kept


def test_bad_entries_are_said_and_harm_nobody():
    method = vaccel.Forecast((0, 1, 4), 8)
    server = vaccel.BatchedDenoiser(exact(1.0))
    good = Request(1, method, 8)
    run = server.run(8, method, guidance=3.0)
    x, cond = good.x, good.cond

    def fresh():
        return server.run(8, method)

    for entry, said in [
        ((fresh(), 1, 900.0, x, cond, None), "step 1 of 8 after step -1: steps come once each"),
        ((fresh(), True, 900.0, x, cond, None), "a step is a whole number"),
        ((fresh(), "0", 900.0, x, cond, None), "a step is a whole number"),
        ((fresh(), 0, torch.zeros(3), x, cond, None), r"t must be a number or a tensor \[\] or \[1\], got \[3\]"),
        ((fresh(), 0, 900.0, [1.0], cond, None), "x must be latents"),
        ((fresh(), 0, 900.0, x[:0], cond, None), "x must be latents"),
        ((fresh(), 0, 900.0, x, cond), "an entry must be"),
        (("run", 0, 900.0, x, cond, None), "an entry must be"),
        (7, "an entry must be"),
    ]:
        before = good.i
        first, second = server.step([(run, *good.entry), entry])
        good.take(first)
        assert good.i == before + 1
        with pytest.raises(ValueError, match=said):
            raise second
        if good.i == 7:
            good, run = Request(1, method, 8), server.run(8, method, guidance=3.0)
    first, second = server.step([(run, *good.entry), (run, *good.entry)])
    assert isinstance(first, torch.Tensor)
    assert "a step under way already" in str(second)
    assert not run.over
    closed = fresh()
    closed.close()
    (answer,) = server.step([(closed, 0, 900.0, x, cond, None)])
    assert "this run is over" in str(answer)
    assert server.step([]) == []


def test_models_that_answer_with_something_else():
    method = vaccel.Forecast((0, 1, 4), 8)
    for model, said in [(lambda x, t, c: (x,), "must give as many rows"), (lambda x, t, c: x[:1], "answers 2 rows")]:
        server = vaccel.BatchedDenoiser(model)
        request = Request(1, method, 8, rows=2)
        (answer,) = server.step([(server.run(8, method), *request.entry[:4], None)])
        with pytest.raises(ValueError, match=said):
            raise answer


@pytest.mark.fast
def test_what_it_refuses():
    model = exact(1.0)
    server = vaccel.BatchedDenoiser(model)
    polynomial = (1.0, 0.0)
    for call, said in [
        (lambda: vaccel.BatchedDenoiser(3), "must be a callable"),
        (lambda: vaccel.BatchedDenoiser(None), "must be a callable"),
        (lambda: vaccel.BatchedDenoiser(model, max_rows=0), "max_rows"),
        (lambda: vaccel.BatchedDenoiser(model, max_rows=True), "max_rows"),
        (lambda: vaccel.BatchedDenoiser(model, pad=True), "say how many"),
        (lambda: server.run(8, vaccel.TeaCache(0.1, polynomial)), "what works on it"),
        (lambda: server.run(8, vaccel.DirectionMagnitude()), "needs the small model"),
        (lambda: server.run(9, vaccel.Schedule([0], num_steps=8)), "8 steps"),
        (lambda: server.run(0, vaccel.EasyCache(0.1)), "steps"),
        (lambda: server.run(8, "forecast"), "must be a vaccel method"),
        (lambda: server.run(8, vaccel.Auto(speedup=2.0)), "use it with vaccel.accelerate"),
    ]:
        with pytest.raises(ValueError, match=said):
            call()


def test_gradients_are_never_recorded():
    method, request = vaccel.Forecast((0, 1, 4), 8), Request(1, vaccel.Forecast((0, 1, 4), 8), 8)
    weight = torch.ones(1, requires_grad=True)
    server = vaccel.BatchedDenoiser(lambda x, t, c: exact(1.0)(x, t, c) * weight)
    (answer,) = server.step([(server.run(8, method), *request.entry)])
    assert not answer.requires_grad
    assert torch.is_grad_enabled()


def test_threads_each_with_a_batch_of_their_own():
    wanted = [requests(n)[:8] for n in range(3)]
    expected = [{r.seed: r.alone()[0] for r in some} for some in wanted]
    server = vaccel.BatchedDenoiser(exact(1.0), exact(0.9))
    threads = [threading.Thread(target=serve, args=(server, some)) for some in wanted]
    with contextlib.ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
    for some, known in zip(wanted, expected, strict=True):
        assert all(torch.equal(r.x, known[r.seed]) for r in some)
