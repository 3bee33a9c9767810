"""Whose call, whose weights, whose state: situations that pipelines are in elsewhere than on a test rig."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanVideoToVideoPipeline

import vaccel
from vaccel.integrations.diffusers.ownership import CURRENT
from vaccel.models.weights_digest import digest

STEPS = 12
EVERY_THIRD = list(range(0, STEPS, 3))
DIRECT = {
    "hidden_states": torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1)),
    "timestep": torch.tensor([500]),
    "encoder_hidden_states": torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(2)),
}


def methods(steps: int = STEPS):
    full = range(0, steps, 3)
    return [
        vaccel.Schedule(full, num_steps=steps),
        vaccel.Schedule(full, num_steps=steps, reuse="residual"),
        vaccel.Forecast((0, 1, *full), steps),
        vaccel.MixCache(theta=1.0, d1=0.3, d2=0.6, cfg_impact=0.1),
        vaccel.DirectionMagnitude(0.05),
        vaccel.EasyCache(0.3, 3),
    ]


def accelerated(pipe, method):
    return vaccel.accelerate(pipe, method, small=tiny.wan_small() if method.needs_small else None)


@torch.no_grad()
def direct(transformer):
    return transformer(**DIRECT).sample


class StoppedError(RuntimeError):
    """What a client's disconnection looks like."""


# -- whose call ------------------------------------------------------------------------------------------------------


def test_a_pipeline_passes_for_what_it_was(wan, tmp_path):
    cls, transformer_cls = type(wan), type(wan.transformer)
    before = set(vars(wan)), set(vars(wan.transformer))
    handle = vaccel.accelerate(wan, methods()[0])
    assert isinstance(wan, cls)
    assert (type(wan).__name__, type(wan).__module__) == (cls.__name__, cls.__module__)
    assert isinstance(wan.transformer, transformer_cls)
    assert type(wan.transformer).__name__ == "WanTransformer3DModel"
    wan.save_pretrained(tmp_path)
    assert '"_class_name": "WanPipeline"' in (tmp_path / "model_index.json").read_text()
    loaded = WanPipeline.from_pretrained(tmp_path)
    assert type(loaded.transformer) is transformer_cls
    other = WanVideoToVideoPipeline.from_pipe(wan)
    assert type(other) is WanVideoToVideoPipeline
    assert type(pickle.loads(pickle.dumps(wan.transformer))) is transformer_cls
    made = type(wan)(**wan.components)  # by the class as it is now: nobody's
    plain = direct(made.transformer)
    assert torch.isfinite(plain).all()
    handle.remove()
    assert type(wan) is cls
    assert type(wan.transformer) is transformer_cls is type(other.transformer)
    assert (set(vars(wan)), set(vars(wan.transformer))) == before


@pytest.mark.parametrize("method", [methods()[0], methods()[3]], ids=["blocks", "states"])
def test_a_run_that_begins_within_anothers_call_finds_the_models_own_blocks(wan, method):
    """Where hooks sit on a model, other blocks are in it for the length of a call: views made then must not be of them,
    nor a digest of its weights."""
    hook = wan.transformer.register_forward_hook(lambda *_: None)
    plain = digest(wan.transformer)
    inside, on, encoded = threading.Event(), threading.Event(), threading.Event()
    with vaccel.accelerate(wan, method) as handle:
        expected = tiny.latents(wan, "a blue bird")
        handle._session.pool.idle.clear()  # so that every view is made anew

        def pause(*_):
            if threading.current_thread() is first and len(handle.traces[-1].steps) == 2 and not inside.is_set():
                inside.set()
                assert on.wait(60)

        first = threading.Thread(target=tiny.latents, args=(wan,))
        paused = wan.transformer.patch_embedding.register_forward_pre_hook(pause)
        first.start()
        assert inside.wait(60)
        other = copy.copy(wan)
        other.scheduler = type(wan.scheduler).from_config(wan.scheduler.config)
        with ThreadPoolExecutor(2) as pool:
            told = wan.text_encoder.register_forward_hook(lambda *_: encoded.set())
            second = pool.submit(tiny.latents, other, "a blue bird")
            weights = pool.submit(digest, wan.transformer)
            assert encoded.wait(60)
            time.sleep(0.5)  # they get as far as they can beside a call that stands still
            on.set()
            told.remove()
            assert torch.equal(second.result(60), expected)
            assert weights.result(60) == plain
        first.join()
        paused.remove()
    hook.remove()


def test_calls_outside_a_run_are_the_plain_model(wan):
    plain = direct(wan.transformer)

    def stop(pipe, i, t, kwargs):
        if i == 4:
            raise StoppedError
        return kwargs

    for method in methods():
        with accelerated(wan, method) as handle:
            tiny.latents(wan)
            held, calls = handle.nbytes, handle.trace.calls
            assert torch.equal(direct(wan.transformer), plain)
            assert (handle.nbytes, handle.trace.calls, len(handle.traces)) == (held, calls, 1)
            with pytest.raises(StoppedError):
                tiny.latents(wan, callback_on_step_end=stop)
            assert handle.nbytes == 0, "an aborted run leaves nothing"
            assert not handle.trace.finished
            for _ in range(5):
                assert torch.equal(direct(wan.transformer), plain)
            assert CURRENT.get() is None


@pytest.mark.parametrize("where", range(2))
def test_a_call_that_ends_between_two_branches_leaves_nothing(wan, where):
    """The interruption comes in the middle of a step: the conditional branch is done, the other is not."""
    alone = {}
    for method in methods():
        with accelerated(wan, method):
            alone[method] = tiny.latents(wan)
    calls = []

    def interrupting(module, args, kwargs):
        calls.append(1)
        if len(calls) == 3 + where:
            raise StoppedError

    plain = direct(wan.transformer)
    for method in methods():
        with accelerated(wan, method) as handle:
            calls.clear()
            hook = wan.transformer.proj_out.register_forward_pre_hook(interrupting, with_kwargs=True)
            with pytest.raises(StoppedError):
                tiny.latents(wan, "a blue dog sleeps", seed=5)
            hook.remove()
            assert torch.equal(direct(wan.transformer), plain)
            assert torch.equal(tiny.latents(wan), alone[method]), method
            assert handle.trace.finished


def test_two_pipelines_on_one_transformer(wan):
    """Each accelerated by itself, or one alone: neither knows of the other."""
    other = tiny.wan_pipeline(transformer=wan.transformer)
    plain = tiny.latents(other)
    first, second = methods()[:2]
    with accelerated(wan, first) as handle:
        one = tiny.latents(wan)
        assert torch.equal(tiny.latents(other), plain)
        assert len(handle.traces) == 1
        with accelerated(other, second) as theirs:
            two = tiny.latents(other)
            assert torch.equal(tiny.latents(wan), one)
            assert (len(handle.traces), len(theirs.traces)) == (2, 1)
        assert torch.equal(tiny.latents(other), plain)
        assert torch.equal(tiny.latents(wan), one)
    assert torch.equal(tiny.latents(wan), plain)
    assert not torch.equal(one, two)
    assert type(wan.transformer) is type(tiny.wan_transformer())


def test_a_pipeline_called_within_another_ones_call(wan):
    inner = tiny.wan_pipeline(transformer=wan.transformer)
    with accelerated(wan, methods()[0]) as handle, accelerated(inner, methods()[2]) as within:
        alone, other = tiny.latents(wan), tiny.latents(inner, seed=3)

        def nested(pipe, i, t, kwargs):
            if i in (2, 7):
                assert torch.equal(tiny.latents(inner, seed=3), other)
                assert torch.equal(tiny.latents(copied, seed=4), again)
            return kwargs

        copied = copy.copy(wan)  # the same pipeline within its own call, with a scheduler of its own
        copied.scheduler = copy.deepcopy(wan.scheduler)
        again = tiny.latents(copied, seed=4)
        assert torch.equal(tiny.latents(wan, callback_on_step_end=nested), alone)
        assert handle.traces[-1].finished
        assert len(within.traces) == 3


def test_copies(wan):
    method = methods()[1]
    with accelerated(wan, method) as handle:
        expected = tiny.latents(wan)
        request = copy.copy(wan)
        request.scheduler = copy.deepcopy(wan.scheduler)
        assert torch.equal(tiny.latents(request), expected), "a shallow copy is accelerated like the original"
        assert len(handle.traces) == 2
        twin = copy.deepcopy(wan)
        assert type(twin) is WanPipeline
        with torch.no_grad():
            for p in twin.transformer.parameters():
                p.zero_()
        drawn = tiny.latents(twin)
        assert len(handle.traces) == 2, "a deep copy is a plain pipeline"
    zeroed = tiny.wan_pipeline()
    with torch.no_grad():
        for p in zeroed.transformer.parameters():
            p.zero_()
    assert torch.equal(drawn, tiny.latents(zeroed))
    assert not torch.equal(tiny.latents(request), expected), "after remove() copies are plain too"


def jobs(steps=STEPS):
    """Eight generations, alternating between two pipelines on one transformer, each with its own copy and scheduler."""
    one = tiny.wan_pipeline()
    two = tiny.wan_pipeline(transformer=one.transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))

    def job(number):
        base = (one, two)[number % 2]
        request = copy.copy(base)
        request.scheduler = copy.deepcopy(base.scheduler)
        return tiny.latents(request, ["a red cat runs", "a blue dog sleeps"][number // 2 % 2], seed=number, steps=steps)

    return one, two, job


@pytest.mark.parametrize("index", range(6))
def test_threads(index):
    one, two, job = jobs()
    first, second = methods()[index], methods()[(index + 1) % 6]
    with accelerated(one, first), accelerated(two, second):
        alone = [job(number) for number in range(8)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(job, range(8)))
    for number, (a, b) in enumerate(zip(alone, together, strict=True)):
        assert torch.equal(a, b), number


def test_tasks_in_a_thread_pool():
    one, two, job = jobs()
    with accelerated(one, methods()[0]), accelerated(two, methods()[4]):
        alone = [job(number) for number in range(8)]

        async def serve():
            return await asyncio.gather(*(asyncio.to_thread(job, number) for number in range(8)))

        together = asyncio.run(serve())
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_plain_pipeline_beside_an_accelerated_one_in_another_thread(wan):
    other = tiny.wan_pipeline(transformer=wan.transformer)
    plain = tiny.latents(other)
    with accelerated(wan, methods()[0]):
        expected, found = tiny.latents(wan), []
        thread = threading.Thread(target=lambda: found.extend(tiny.latents(other) for _ in range(3)))
        thread.start()
        mine = [tiny.latents(wan) for _ in range(3)]
        thread.join()
    assert all(torch.equal(f, plain) for f in found)
    assert len(found) == 3
    assert all(torch.equal(m, expected) for m in mine)


def test_what_takes_a_transformers_place_is_looked_at(wan):
    with accelerated(wan, methods()[0]) as handle:
        tiny.latents(wan)
        own = wan.transformer
        wan.transformer = torch.compile(own, backend="eager")
        with pytest.raises(ValueError, match=r"wrapped by torch\.compile"):
            tiny.latents(wan)
        wan.transformer = tiny.cog_transformer()
        with pytest.raises(ValueError, match="is a CogVideoXTransformer3DModel now, and was accelerated as a Wan"):
            tiny.latents(wan)
        wan.transformer = own
        tiny.latents(wan)
        assert len(handle.traces) == 2


def modular(base):
    from diffusers import ClassifierFreeGuidance
    from diffusers.modular_pipelines.wan import WanBlocks, WanModularPipeline

    pipe = WanModularPipeline(blocks=WanBlocks())
    parts = {name: getattr(base, name) for name in ("text_encoder", "tokenizer", "transformer", "vae", "scheduler")}
    pipe.update_components(**parts, guider=ClassifierFreeGuidance(guidance_scale=5.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, **call):
    arguments = {"prompt": "a red cat runs", "negative_prompt": "", "height": 32, "width": 32, "num_frames": 9,
                 "output": "latents", "num_inference_steps": STEPS, "max_sequence_length": 8}  # fmt: skip
    return pipe(**{**arguments, "generator": torch.Generator().manual_seed(0), **call})


@pytest.mark.parametrize("index", range(6))
def test_a_modular_pipeline_is_the_other_one(wan, index):
    """Guiders in place of a scale, timesteps that are cast: the same steps, decisions and bits."""
    method, small = methods()[index], tiny.wan_small()
    given = {"small": small} if method.needs_small else {}
    pipe = modular(wan)
    plain = drawn(pipe)
    with vaccel.accelerate(pipe, method, **given) as handle:
        with pytest.raises(ValueError, match="accelerated already"):
            vaccel.accelerate(pipe, method, **given)
        found, trace = drawn(pipe), handle.trace
        assert torch.equal(drawn(copy.copy(pipe)), found)
        assert trace.finished
    assert torch.equal(drawn(pipe), plain)
    with vaccel.accelerate(wan, method, **given) as handle:
        expected = tiny.latents(wan)
        assert handle.trace.timeline() == trace.timeline()
        assert handle.trace.calls == trace.calls
    assert torch.equal(found, expected)


# -- runs by hand ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(pipe, handle, steps=STEPS):
    """A loop of the user's own, without guidance, that calls the transformer itself."""
    x = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(steps)
    with handle.run(steps) as run:
        for t in pipe.scheduler.timesteps:
            v = pipe.transformer(
                hidden_states=x, timestep=t.expand(1), encoder_hidden_states=DIRECT["encoder_hidden_states"],
                return_dict=False,
            )[0]  # fmt: skip
            x = pipe.scheduler.step(v, t, x, return_dict=False)[0]
    return x, run.trace


def test_a_run_by_hand(wan):
    wan._guidance_scale = 1.0
    for method in methods():
        with accelerated(wan, method) as handle:
            x, trace = by_hand(wan, handle)
            assert trace.finished
            assert trace is handle.trace
            again, _ = by_hand(wan, handle)
            assert torch.equal(x, again)
            assert set(trace.timeline()) != {"F"}


def test_what_a_run_by_hand_refuses(wan):
    wan._guidance_scale = 1.0
    with accelerated(wan, methods()[0]) as handle:
        with pytest.raises(ValueError, match="open on this thread already"), handle.run(STEPS), handle.run(STEPS):
            pass
        assert CURRENT.get() is None
        with pytest.raises(ValueError, match="open on this thread already"), handle.run(STEPS):
            tiny.latents(wan)
        assert CURRENT.get() is None
        with pytest.raises(ValueError, match="num_steps must be at least 1"):
            handle.run(0)
        wan.scheduler.set_timesteps(20)
        given = {**DIRECT, "timestep": wan.scheduler.timesteps[0].expand(1)}
        with pytest.raises(ValueError, match="opened for 12 steps, the scheduler has 20"), handle.run(STEPS):
            wan.transformer(**given)
        with pytest.raises(RuntimeError, match="no step yet"), handle.run(STEPS) as run:
            _ = run.trace
        tiny.latents(wan)
        assert handle.trace.finished, "none of it has left anything"
    with pytest.raises(RuntimeError, match="was removed"):
        handle.run(STEPS)


def test_a_hook_that_calls_the_transformer_in_its_own_step_is_refused(wan):
    def hook(module, args, output):
        module(**DIRECT)

    plain = tiny.latents(wan)
    with accelerated(wan, methods()[0]):
        removing = wan.transformer.register_forward_hook(hook)
        with pytest.raises(ValueError, match="WanTransformer3DModel was called again from within its own step"):
            tiny.latents(wan)
        removing.remove()
        tiny.latents(wan)
    assert torch.equal(tiny.latents(wan), plain)


def test_no_gradient_is_lost(wan):
    call = type(wan).__call__.__wrapped__  # without its no_grad
    wan.transformer.requires_grad_(False)
    prompt = DIRECT["encoder_hidden_states"].clone().requires_grad_()
    arguments = {
        "prompt_embeds": prompt, "negative_prompt_embeds": torch.zeros(1, 8, 32), "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(0), **tiny.WAN_CALL,
    }  # fmt: skip
    with accelerated(wan, vaccel.Schedule([0, 2], num_steps=4)) as handle:
        call(wan, **arguments).frames.sum().backward()  # past the accelerated call: plain
        assert prompt.grad is not None
        assert not handle.traces
        wan.scheduler.set_timesteps(4)
        x = torch.zeros(1, 16, 3, 4, 4, requires_grad=True)
        with pytest.raises(ValueError, match="computes no gradients"), handle.run(4):
            wan.transformer(**{**DIRECT, "hidden_states": x, "timestep": wan.scheduler.timesteps[0].expand(1)})


def test_buffers_stay_after_runs_at_the_same_time():
    """Of several workspaces one keeps what it has, whichever it is: later runs find it, and allocate nothing."""
    pipe = tiny.wan_pipeline()
    handle = vaccel.accelerate(pipe, vaccel.Schedule([0, 2, 4], num_steps=6, reuse="output"))
    tiny.latents(pipe, steps=6)
    one = handle.nbytes

    def nested(pipe, step, t, kwargs):
        if step == 1:
            other = copy.copy(pipe)
            other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
            tiny.latents(other, steps=6)
        return kwargs

    def stops(pipe, step, t, kwargs):
        raise KeyError

    tiny.latents(pipe, steps=6, callback_on_step_end=nested)
    assert handle.nbytes == one > 0
    with pytest.raises(KeyError):
        tiny.latents(pipe, steps=6, callback_on_step_end=stops)
    assert handle.nbytes == 0, "an aborted run leaves nothing"
    tiny.latents(pipe, steps=6)
    assert handle.nbytes == one
    moves = handle._session.buffers.moves
    tiny.latents(pipe, steps=6)
    assert handle._session.buffers.moves == moves
