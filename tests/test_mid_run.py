"""What callers do in the middle of a run, or between two: callbacks, offload, removal, guiders, other contexts."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import io

import pytest
import tiny
import torch
from diffusers import FirstBlockCacheConfig, WanTransformer3DModel
from diffusers.callbacks import PipelineCallback
from peft import LoraConfig

import vaccel

STEPS = 12
THIRDS = vaccel.Schedule(range(0, STEPS, 3), num_steps=STEPS)
#: One that stores block residuals and block states both, one that stores outputs, one that looks at both branches.
METHODS = [
    THIRDS,
    vaccel.Schedule(range(0, STEPS, 3), num_steps=STEPS, reuse="residual"),
    vaccel.Schedule.from_timeline("FFbFrFogbFrF"),
    vaccel.MixCache(theta=1.0, d1=0.3, d2=0.6, cfg_impact=0.1),
]
FAMILIES = ["wan", "cogvideox", "qwen-image"]


def run_of(pipe, method, **call):
    with vaccel.accelerate(pipe, method) as handle:
        return tiny.latents(pipe, **call), handle.trace.timeline()


# -- weights that move -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("index", range(4))
def test_model_cpu_offload(family, index):
    """The pipeline's device becomes "cpu:0", to which a move of the model copies every registered buffer."""
    pipe, _ = tiny.family(family)
    want, timeline = run_of(pipe, METHODS[index])
    with vaccel.accelerate(pipe, METHODS[index]) as handle:
        pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(tiny.latents(pipe), want)
        assert handle.trace.timeline() == timeline
    assert torch.equal(run_of(pipe, METHODS[index])[0], want)


# -- callbacks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("locatable", [False, True])
def test_a_callbacks_own_call_of_the_transformer_is_plain(wan, index, locatable):
    given = {
        "hidden_states": torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1)),
        "encoder_hidden_states": torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(2)),
    }
    want, timeline = run_of(wan, METHODS[index])
    seen = []

    def look(pipe, i, t, kwargs):
        with torch.no_grad():
            at = {**given, "timestep": t.expand(1) if locatable else torch.tensor([512.3])}
            seen.append((pipe.transformer(**at).sample, at))
        return kwargs

    got, as_before = run_of(wan, METHODS[index], callback_on_step_end=look)
    assert torch.equal(got, want)
    assert as_before == timeline
    with torch.no_grad():
        assert len(seen) == STEPS
        assert all(torch.equal(wan.transformer(**at).sample, sample) for sample, at in seen)


def test_a_callback_object_of_diffusers_sees_what_it_asks_for(wan):
    seen = []

    class Watch(PipelineCallback):
        @property
        def tensor_inputs(self):
            return ["latents", "prompt_embeds"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            seen.append(sorted(callback_kwargs))
            return callback_kwargs

    watch = Watch(cutoff_step_ratio=0.5, cutoff_step_index=None)
    want = tiny.latents(wan)
    with vaccel.accelerate(wan, vaccel.Schedule(range(STEPS), num_steps=STEPS)):
        assert torch.equal(tiny.latents(wan, callback_on_step_end=watch), want)
    assert seen == [["latents", "prompt_embeds"]] * STEPS


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_changed_in_a_callback_count_from_the_next_computed_step(family):
    """An adapter that reaches from the first block to the head."""
    targets = {"wan": "proj_out", "cogvideox": "proj_out", "qwen-image": "proj_out"}[family]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", targets], init_lora_weights="gaussian")

    def adapted(pipe, i, t, kwargs):
        if i == 4:
            torch.manual_seed(0)
            pipe.transformer.add_adapter(config)
            for name, parameter in pipe.transformer.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        return kwargs

    results = []
    for hook in (False, True):  # a hook on the root takes the path on which blocks are swapped in
        pipe, _ = tiny.family(family)
        if hook:
            pipe.transformer.register_forward_hook(lambda *args: None)
        results.append(run_of(pipe, METHODS[1], callback_on_step_end=adapted)[0])
        pipe, _ = tiny.family(family)
        without = run_of(pipe, METHODS[1])[0]
    assert torch.equal(*results)
    assert not torch.equal(results[0], without)


# -- removal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("index", range(4))
def test_remove_in_a_callback(wan, second, index):
    """The rest of the generation is plain, also while another pipeline's handle listens; and nothing is held."""
    other = tiny.wan_pipeline(transformer=wan.transformer)
    handle = vaccel.accelerate(wan, METHODS[index])
    session = handle._session
    beside = vaccel.accelerate(other, THIRDS) if second else None
    calls, counted = [], []
    wan.transformer.blocks[0].register_forward_hook(lambda *args: calls.append(1))

    def stop(pipe, i, t, kwargs):
        if i == 2:
            handle.remove()
            calls.clear()
        counted.append(len(calls))
        return kwargs

    tiny.latents(wan, callback_on_step_end=stop)
    assert counted[2:] == [2 * i for i in range(STEPS - 2)]
    assert session.pool.nbytes == handle.nbytes == 0
    if beside is not None:
        calls.clear()
        tiny.latents(other)
        assert len(calls) == 8
        beside.remove()
    assert type(wan.transformer) is WanTransformer3DModel


def test_a_method_exchanged_in_a_callback_takes_over_with_the_next_call(wan):
    handles = [vaccel.accelerate(wan, THIRDS)]

    def exchange(pipe, i, t, kwargs):
        if i == 2:
            handles[0].remove()
            handles.append(vaccel.accelerate(pipe, METHODS[1]))
        return kwargs

    tiny.latents(wan, callback_on_step_end=exchange)
    assert len(handles[0].trace.steps) == 3
    assert not handles[1].traces
    assert torch.equal(tiny.latents(wan), run_of(tiny.wan_pipeline(), METHODS[1])[0])
    handles[1].remove()


def test_a_pipeline_that_is_let_go_of_lets_its_transformer_go():
    transformer = tiny.wan_transformer()
    pipe = tiny.wan_pipeline(transformer=transformer)
    handle = vaccel.accelerate(pipe, THIRDS)
    tiny.latents(pipe)
    del pipe, handle
    gc.collect()
    assert type(transformer) is WanTransformer3DModel


# -- between two runs ------------------------------------------------------------------------------------------------


def test_a_second_transformer_that_comes_and_goes():
    pipe = tiny.wan_pipeline(transformer_2=tiny.wan_transformer(5), boundary_ratio=0.7)
    two = pipe.transformer_2
    with vaccel.accelerate(pipe, THIRDS):
        both = tiny.latents(pipe)
        pipe.register_modules(transformer_2=None)
        pipe.register_to_config(boundary_ratio=None)
        assert torch.equal(tiny.latents(pipe), run_of(tiny.wan_pipeline(), THIRDS)[0])
        pipe.register_modules(transformer_2=two)
        pipe.register_to_config(boundary_ratio=0.7)
        assert torch.equal(tiny.latents(pipe), both)
    assert type(two) is WanTransformer3DModel


def test_a_second_transformer_without_a_small_one(wan):
    with vaccel.accelerate(wan, vaccel.DirectionMagnitude(0.05), small=tiny.wan_small()):
        tiny.latents(wan)
        wan.register_modules(transformer_2=tiny.wan_transformer(5))
        with pytest.raises(ValueError, match=r"has a transformer_2 now, and no small model"):
            tiny.latents(wan)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_cache_enabled_between_two_runs_is_refused(family):
    pipe, _ = tiny.family(family)
    with vaccel.accelerate(pipe, THIRDS):
        tiny.latents(pipe)
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.3))
        with pytest.raises(ValueError, match=r"disable_cache\(\)"):
            tiny.latents(pipe)
        pipe.transformer.disable_cache()
        assert torch.equal(tiny.latents(pipe), run_of(tiny.family(family)[0], THIRDS)[0])


@pytest.mark.parametrize("small", [3, "wan", [None], [3]])
def test_a_small_model_that_is_none(wan, small):
    with pytest.raises(ValueError, match="small must be a transformer"):
        vaccel.accelerate(wan, vaccel.DirectionMagnitude(0.05), small=small)
    assert type(wan.transformer) is WanTransformer3DModel


def test_auto_learns_anew_at_another_lora_scale(wan, tmp_path):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False)
    wan.transformer.add_adapter(config)
    with vaccel.accelerate(wan, vaccel.Auto(speedup=2, learn=1, folder=str(tmp_path))) as handle:
        tiny.latents(wan)
        for scale in (0.4, 0.4, 0.25):  # diffusers scales the layers for the call and back, which leaves 0.4 a bit off
            tiny.latents(wan, attention_kwargs={"scale": scale})
        tiny.latents(wan)
    full = [trace.timeline() == "F" * STEPS for trace in handle.traces]
    assert full == [True, True, False, True, False]


# -- loops by hand ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def cog_loop(first, rows, method, guidance):
    pipe = tiny.cog_pipeline()
    draw = torch.Generator().manual_seed(3)
    x, text = torch.randn(rows, 3, 4, 8, 8, generator=draw), torch.randn(rows, 16, 32, generator=draw)
    with vaccel.accelerate(pipe, method) as handle:
        if first is not None:
            tiny.latents(pipe, guidance=first)
        with handle.run(STEPS, guidance):
            pipe.scheduler.set_timesteps(STEPS)
            rotary = pipe._prepare_rotary_positional_embeddings(64, 64, 3, torch.device("cpu"))
            for t in pipe.scheduler.timesteps:
                v = pipe.transformer(
                    hidden_states=x, timestep=t.expand(rows), encoder_hidden_states=text, image_rotary_emb=rotary
                )[0]
                x = x - 0.1 * v
    return x


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(("rows", "guidance"), [(1, 1.0), (2, 1.0), (3, 1.0), (2, 5.0)])
def test_a_loop_by_hand_knows_nothing_of_earlier_calls(index, rows, guidance):
    results = [cog_loop(first, rows, METHODS[index], guidance) for first in (None, 1.0, 5.0)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_generator_that_is_stepped_from_other_contexts(wan):
    """As servers do that hand out a stream of results from a pool of threads."""
    handle = vaccel.accelerate(wan, THIRDS)
    text = torch.randn(1, 8, 32)

    def steps():
        with handle.run(STEPS):
            wan.scheduler.set_timesteps(STEPS)
            for t in wan.scheduler.timesteps:
                with torch.no_grad():
                    given = {"timestep": t.expand(1), "encoder_hidden_states": text}
                    yield wan.transformer(hidden_states=torch.randn(1, 16, 3, 4, 4), **given)[0]

    generator = steps()
    for _ in range(STEPS):
        contextvars.copy_context().run(next, generator)
    with pytest.warns(UserWarning, match="another context"):
        contextvars.copy_context().run(lambda: next(generator, None))
    assert not handle._session.pool.used
    together = contextvars.copy_context()  # one for all is what keeps a run together
    assert len(list(together.run(lambda: list(steps())))) == STEPS
    assert handle.trace.timeline() == "FrrFrrFrrFrr"
    handle.remove()


# -- guiders ---------------------------------------------------------------------------------------------------------


def test_a_guider_that_exchanges_its_second_prediction():
    """Skipped layers from the middle on, in the unconditional prediction's place: nothing of the one is the other's."""
    from diffusers.guiders import SkipLayerGuidance
    from diffusers.hooks import LayerSkipConfig
    from diffusers.modular_pipelines.wan import WanBlocks, WanModularPipeline

    base = tiny.wan_pipeline()
    pipe = WanModularPipeline(blocks=WanBlocks())
    skip = LayerSkipConfig(indices=[1, 2], fqn="blocks")
    guider = SkipLayerGuidance(
        guidance_scale=5.0,
        stop=0.5,
        skip_layer_guidance_start=0.5,
        skip_layer_guidance_stop=1.0,
        skip_layer_config=skip,
    )
    names = ("text_encoder", "tokenizer", "transformer", "vae", "scheduler")
    pipe.update_components(**{name: getattr(base, name) for name in names}, guider=guider)
    method = vaccel.Schedule([*range(6), 10, 11], num_steps=STEPS)
    with vaccel.accelerate(pipe, method) as handle, contextlib.redirect_stderr(io.StringIO()):
        pipe(
            prompt="a red cat runs",
            negative_prompt="",
            height=32,
            width=32,
            num_frames=9,
            output="latents",
            num_inference_steps=STEPS,
            max_sequence_length=8,
            generator=torch.Generator().manual_seed(0),
        )
    large = [(step.large, step.reason) for step in handle.trace.steps]
    assert large[6][0] <= 1
    first = next(i for i in range(6, STEPS) if large[i][0])
    assert "branch 1 computed in full" in large[first][1]
    assert large[first + 1] == (0, "")
