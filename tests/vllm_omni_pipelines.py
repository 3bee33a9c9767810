"""Other pipelines of vLLM-Omni under the backend: their own loops and transformers, tiny, over the double of vLLM.

``test_vllm_omni.py`` runs this in a process of its own.  Prompts are random embeddings; what encodes and decodes is
left out.  Each pipeline's denoising is the wheel's: ``diffuse`` where it has one, else its whole ``forward``.
"""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import vllm_double

vllm_double.install()

from diffusers import FlowMatchEulerDiscreteScheduler  # noqa: E402
from torch import nn  # noqa: E402
from vllm_omni.diffusion.cache import selector  # noqa: E402
from vllm_omni.diffusion.forward_context import set_forward_context  # noqa: E402
from vllm_omni.diffusion.models.flux.flux_transformer import FluxTransformer2DModel  # noqa: E402
from vllm_omni.diffusion.models.flux.pipeline_flux import FluxPipeline  # noqa: E402
from vllm_omni.diffusion.models.hunyuan_video.hunyuan_video_15_transformer import (  # noqa: E402
    HunyuanVideo15Transformer3DModel,
)
from vllm_omni.diffusion.models.hunyuan_video.pipeline_hunyuan_video_1_5 import HunyuanVideo15Pipeline  # noqa: E402
from vllm_omni.diffusion.models.ltx2 import ltx2_denoise, ltx2_guidance  # noqa: E402
from vllm_omni.diffusion.models.ltx2.ltx2_latents import LTXAVState  # noqa: E402
from vllm_omni.diffusion.models.ltx2.ltx2_transformer import LTX2VideoTransformer3DModel  # noqa: E402
from vllm_omni.diffusion.models.ltx2.pipeline_ltx2 import LTX2Pipeline  # noqa: E402
from vllm_omni.diffusion.models.qwen_image.pipeline_qwen_image import QwenImagePipeline  # noqa: E402
from vllm_omni.diffusion.models.qwen_image.qwen_image_transformer import QwenImageTransformer2DModel  # noqa: E402
from vllm_omni.diffusion.models.sd3.pipeline_sd3 import StableDiffusion3Pipeline  # noqa: E402
from vllm_omni.diffusion.models.sd3.sd3_transformer import SD3Transformer2DModel  # noqa: E402
from vllm_omni.diffusion.models.z_image.pipeline_z_image import ZImagePipeline  # noqa: E402
from vllm_omni.diffusion.models.z_image.z_image_transformer import ZImageTransformer2DModel  # noqa: E402
from vllm_omni.diffusion.registry import _apply_sequence_parallel_if_enabled  # noqa: E402

import vaccel  # noqa: E402
from vaccel.serving import vllm_omni as plugin  # noqa: E402

STEPS = 12
PARALLEL = types.SimpleNamespace(
    sequence_parallel_size=1, ulysses_degree=1, ring_degree=1, ulysses_mode="strict", mask_sp_padding=False
)
CONFIG = types.SimpleNamespace(parallel_config=PARALLEL, dtype=torch.float32, tf_model_config=types.SimpleNamespace())


class Asked:
    """A request's sampling parameters: what is not said is None."""

    def __init__(self, **said: Any):
        self.__dict__.update({"guidance_scale_provided": True, "cfg_normalize": False, "extra_args": {}}, **said)
        self.num_outputs_per_prompt = 0

    def __getattr__(self, name: str) -> None:
        return None


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=made) for shape in shapes]


def began(pipe: Any, transformer: nn.Module, **more: Any) -> None:
    nn.Module.__init__(pipe)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.1)
    pipe.transformer, pipe.scheduler = transformer.eval(), FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe.device, pipe.od_config = torch.device("cpu"), CONFIG
    pipe._interrupt, pipe._current_timestep, pipe._joint_attention_kwargs = False, None, None
    for name, value in more.items():
        setattr(pipe, name, value)


class Qwen(QwenImagePipeline):
    def __init__(self):
        began(self, QwenImageTransformer2DModel(
            CONFIG, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
        ))  # fmt: skip

    def forward(self, seed: int, steps: int, guidance: float, pictures: torch.Tensor | None = None) -> torch.Tensor:
        x, text, other = drawn(seed, (1, 16, 16), (1, 8, 32), (1, 6, 32))
        self.scheduler.set_timesteps(steps)
        shapes = [[(1, 4, 4)] * (1 if pictures is None else 2)]
        return self.diffuse(
            text, torch.ones(1, 8), other, torch.ones(1, 6), x, shapes, [8], [6], self.scheduler.timesteps,
            guidance > 1, None, guidance, pictures,
        )  # fmt: skip


class QwenEdit(Qwen):
    """The loop of its editing pipelines: a picture's tokens behind the latents, cut off what comes out."""

    def forward(self, seed: int, steps: int, guidance: float) -> torch.Tensor:
        return super().forward(seed, steps, guidance, drawn(seed + 100, (1, 16, 16))[0])


class Flux(FluxPipeline):
    def __init__(self):
        began(self, FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6),
        ))  # fmt: skip

    def forward(self, seed: int, steps: int, guidance: float) -> torch.Tensor:
        x, text, other, pooled = drawn(seed, (1, 16, 16), (1, 8, 32), (1, 8, 32), (1, 32))
        places = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1)
        self.scheduler.set_timesteps(steps)
        none = torch.zeros(8, 3)
        return self.diffuse(
            text, pooled, other, pooled, x, places.reshape(16, 3), none, none, self.scheduler.timesteps, guidance > 1,
            torch.full((1,), 3.5), guidance,
        )  # fmt: skip


class Sd3(StableDiffusion3Pipeline):
    def __init__(self):
        sizes = types.SimpleNamespace(
            num_layers=2, sample_size=8, in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16,
            caption_projection_dim=32, pooled_projection_dim=32, joint_attention_dim=32, patch_size=2,
            pos_embed_max_size=8,
        )  # fmt: skip
        began(self, SD3Transformer2DModel(types.SimpleNamespace(parallel_config=PARALLEL, tf_model_config=sizes)))

    def forward(self, seed: int, steps: int, guidance: float) -> torch.Tensor:
        x, text, other, pooled = drawn(seed, (1, 4, 8, 8), (1, 8, 32), (1, 8, 32), (1, 32))
        self.scheduler.set_timesteps(steps)
        return self.diffuse(x, self.scheduler.timesteps, text, pooled, other, pooled, guidance > 1, guidance)


class Hunyuan(HunyuanVideo15Pipeline):
    def __init__(self):
        began(self, HunyuanVideo15Transformer3DModel(
            CONFIG, in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
            num_refiner_layers=1, text_embed_dim=32, text_embed_2_dim=16, image_embed_dim=24, rope_axes_dim=(4, 6, 6),
        ), num_channels_latents=4, vae_scale_factor_temporal=4, vae_scale_factor_spatial=8, use_meanflow=False,
            vision_num_semantic_tokens=5, vision_states_dim=24)  # fmt: skip

    def encode_prompt(self, prompt: int, **_: Any) -> tuple[torch.Tensor, ...]:
        text, second, other, its_second = drawn(prompt, (1, 8, 32), (1, 4, 16), (1, 8, 32), (1, 4, 16))
        whole, short = torch.ones(1, 8, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)
        return text, whole, second, short, other, whole, its_second, short

    def forward(self, seed: int, steps: int, guidance: float) -> torch.Tensor:
        asked = Asked(guidance_scale=guidance, seed=seed, height=32, width=32, num_frames=5, num_inference_steps=steps)
        request = types.SimpleNamespace(prompts=[{"prompt": seed}], sampling_params=asked)
        return super().forward(request, output_type="latent").output


class ZImage(ZImagePipeline):
    def __init__(self):
        began(self, ZImageTransformer2DModel(
            in_channels=4, dim=48, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32,
            axes_dims=[8, 8, 8], axes_lens=[64, 32, 32],
        ), vae_scale_factor=8, _execution_device=torch.device("cpu"))  # fmt: skip

    def encode_prompt(self, prompt: list[str], **_: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        text, other = drawn(int(prompt[0]), (8, 32), (6, 32))
        return [text], [other] if self.do_classifier_free_guidance else []

    def forward(self, seed: int, steps: int, guidance: float) -> torch.Tensor:
        asked = Asked(guidance_scale=guidance, height=64, width=64, num_inference_steps=steps, output_type="latent",
                      generator=torch.Generator().manual_seed(seed))  # fmt: skip
        return super().forward(types.SimpleNamespace(prompts=[str(seed)], sampling_params=asked)).output


class Ltx2(LTX2Pipeline):
    """Two tensors, a solver of its own, all branches of its guidance in one call, the conditional one first."""

    def __init__(self):
        sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24}
        began(self, LTX2VideoTransformer3DModel(
            in_channels=8, out_channels=8, audio_in_channels=8, audio_out_channels=8, num_layers=2, caption_channels=24,
            **sizes, **{f"audio_{name}": size for name, size in sizes.items()},
        ))  # fmt: skip

    def forward(self, seed: int, steps: int, guidance: float) -> torch.Tensor:
        x, sound, *texts = drawn(seed, (1, 8, 8), (1, 5, 8), *[(1, 6, 24)] * 4)
        names = [f"{sign}_connector_{kind}" for sign in ("positive", "negative")
                 for kind in ("prompt_embeds", "audio_prompt_embeds")]  # fmt: skip
        prompt = types.SimpleNamespace(batch_size=1, **dict(zip(names, texts, strict=True)))
        scale = ltx2_guidance.LTXModalityGuidance(cfg_scale=guidance)
        spec = ltx2_guidance.LTXGuidanceSpec(video=scale, audio=scale)
        self._guidance_plan = ltx2_guidance.LTXGuidancePlan.build(spec)
        inputs = types.SimpleNamespace(num_inference_steps=steps, frame_rate=24.0, guidance=spec)
        size = {"latent_num_frames": 2, "latent_height": 2, "latent_width": 2}
        scheduler, adapter, timesteps = ltx2_denoise.prepare_scheduler_stage(
            self, inputs, device=self.device, sigmas=None, timesteps=None, use_official_sigma_schedule=True, **size
        )
        context = ltx2_denoise.LTXForwardContext(
            req=None, request_inputs=inputs, prompt_context=prompt, device=self.device, guidance_parallel_ready=False,
            attention_kwargs=None, latent_mel_bins=1, original_audio_num_frames=5, padded_audio_num_frames=5,
            timesteps=timesteps, sampler="euler", audio_scheduler=scheduler, video_audio_step_adapter=adapter, **size,
        )  # fmt: skip
        places = ltx2_denoise.prepare_rope_coords_stage(self, context, x, sound)
        given = self._prepare_denoise_context_for_guidance(context, ltx2_denoise.LTXDenoiseContext(x, sound, *places))
        state = ltx2_denoise.LTXDenoiseExecutor.run(
            self, LTXAVState(video=x, audio=sound), timesteps,
            lambda index, t, state: self._denoise_step(index, t, state, context, given),
        )  # fmt: skip
        return torch.cat([state.video, state.audio], dim=1)


KINDS = (Qwen, QwenEdit, Flux, Sd3, Hunyuan, ZImage, Ltx2)
#: Those whose branches are one call.
TOGETHER = (ZImage, Ltx2)


def built(kind: type) -> Any:
    torch.manual_seed(0)
    with set_forward_context(omni_diffusion_config=CONFIG):
        pipe = kind()
        _apply_sequence_parallel_if_enabled(pipe, CONFIG)  # as their loader does, before any backend
    return pipe


def run(pipe: Any, backend: Any = None, *, seed: int = 3, steps: int = STEPS, guidance: float = 4.0) -> torch.Tensor:
    with torch.inference_mode(), set_forward_context(omni_diffusion_config=CONFIG):
        if backend is not None:
            backend.refresh(pipe, steps)
        return pipe.forward(seed, steps, guidance).clone()


def enabled(kind: type, config: Any) -> tuple[Any, Any]:
    plugin.register()
    pipe = built(kind)
    backend = selector.get_cache_backend("vaccel", config)
    backend.enable(pipe)
    return pipe, backend


def schedule(full: Any) -> dict[str, Any]:
    return {"method": vaccel.Schedule(full, num_steps=STEPS, reuse="output").to_json()}


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_computed_is_their_pipeline_bit_for_bit(kind, guidance):
    plain = run(built(kind), guidance=guidance)
    assert torch.isfinite(plain).all()
    pipe, backend = enabled(kind, schedule(range(STEPS)))
    assert torch.equal(run(pipe, backend, guidance=guidance), plain)
    assert backend.handle.trace.timeline() == "F" * STEPS
    backend.remove()
    assert torch.equal(run(pipe, guidance=guidance), plain)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_skipped_steps_take_the_last_outputs_again(kind, guidance):
    """The same written down over their transformer: at steps between, its last outputs, call by call."""
    oracle = built(kind)
    forward, calls, known = oracle.transformer.forward, [], []

    def again(*args, **kwargs):
        each = 2 if guidance > 1 and kind not in TOGETHER else 1
        step, branch = divmod(len(calls), each)
        calls.append(step)
        if step % 3 == 0:
            out = forward(*args, **kwargs)
            known[branch:] = [out, *known[branch + 1 :]]
        return known[branch]

    oracle.transformer.forward = again
    expected = run(oracle, guidance=guidance)
    assert len(set(calls)) == STEPS
    pipe, backend = enabled(kind, schedule(range(0, STEPS, 3)))
    found = run(pipe, backend, guidance=guidance)
    assert backend.handle.trace.timeline() == "Foo" * (STEPS // 3)
    assert torch.equal(found, expected)
    assert not torch.equal(found, run(built(kind), guidance=guidance))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_calibration(kind):
    pipe, backend = enabled(kind, {"budget": 6})
    first, other = run(pipe, backend, steps=24), run(pipe, backend, steps=24, seed=4)
    assert backend.handle.trace.timeline().count("F") == 6
    assert len(backend.handle.traces) == 2
    assert torch.isfinite(first).all()
    assert not torch.equal(first, other)
    assert torch.equal(run(pipe, backend, steps=24), first)
    # Nothing is promised of random weights; it is the velocities' line that goes on, and no noise.
    full = run(built(kind), steps=24)
    assert (first - full).norm() < (run(*enabled(kind, schedule([0])), steps=STEPS) - full).norm()
