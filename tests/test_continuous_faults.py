"""Continuous batching under faults: whoever fails, is cancelled or says nonsense harms nobody and leaves nothing."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import weakref

import pytest
import torch
from continuous_requests import Request, exact, requests, serve

import vaccel

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
