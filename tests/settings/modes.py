"""How a pipeline computes: attention, memory layout, dtype and device, the VAE, autograd; and what is made of it."""

from __future__ import annotations

import copy
from typing import Any

import torch

from .base import Setting
from .offload import denoiser

# -- attention -------------------------------------------------------------------------------------------------------


def backend(pipe: Any) -> None:
    denoiser(pipe).set_attention_backend("_native_math")


def processors(pipe: Any) -> None:
    """Processors of the same kind and of its own: what they compute is scaled, so that it shows."""
    model = denoiser(pipe)
    kind = type(next(iter(model.attn_processors.values())))

    class Louder(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            found = super().__call__(*args, **kwargs)
            return tuple(f * 1.5 for f in found) if isinstance(found, tuple) else found * 1.5

    model.set_attn_processor({name: Louder() for name in model.attn_processors})


def default_processors(pipe: Any) -> None:
    denoiser(pipe).set_attn_processor(copy.deepcopy(denoiser(pipe).attn_processors))


def sliced(pipe: Any) -> None:
    pipe.enable_attention_slicing(1)


def fused_qkv(pipe: Any) -> None:
    denoiser(pipe).fuse_qkv_projections()


ATTENTION = {"group": "Attention"}
Setting("attention backend", apply=backend, pipes=("wan", "flux"), fast=True,
        recipe='transformer.set_attention_backend("_native_math")', **ATTENTION)  # fmt: skip
Setting("attention processors", apply=processors, recipe="transformer.set_attn_processor(...)", **ATTENTION)
Setting("attention processors, the same", apply=default_processors, pipes=("wan", "sd"), neutral=True,
        recipe="transformer.set_attn_processor(...)", **ATTENTION)  # fmt: skip
Setting("attention slicing", apply=sliced, pipes=("sd",), recipe="pipe.enable_attention_slicing()", **ATTENTION)
Setting("fused projections", apply=fused_qkv, recipe="transformer.fuse_qkv_projections()", **ATTENTION)

# -- memory, dtype, device -------------------------------------------------------------------------------------------


def channels_last(pipe: Any) -> None:
    denoiser(pipe).to(memory_format=torch.channels_last)


def channels_last_3d(pipe: Any) -> None:
    denoiser(pipe).to(memory_format=torch.channels_last_3d)


def free_u(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def bfloat16(pipe: Any) -> None:
    pipe.to(torch.bfloat16)


def float64(pipe: Any) -> None:
    pipe.to(torch.float64)


def to_cpu(pipe: Any) -> None:
    pipe.to("cpu")


def there_and_back(pipe: Any) -> None:
    pipe.to("cpu", torch.bfloat16)
    pipe.to(torch.float32)


def _in(dtype: torch.dtype) -> Any:
    def call(name: str) -> dict[str, Any]:
        from .subjects import SUBJECTS

        given = SUBJECTS[name].call
        return {k: v.to(dtype) for k, v in given.items() if isinstance(v, torch.Tensor)}

    return call


MEMORY = {"group": "Memory, dtype, device"}
Setting("channels last", apply=channels_last, pipes=("sd",), recipe="pipe.unet.to(memory_format=torch.channels_last)",
        **MEMORY)  # fmt: skip
Setting("channels last, 3-D", apply=channels_last_3d, pipes=("wan",),
        recipe="pipe.transformer.to(memory_format=torch.channels_last_3d)", **MEMORY)  # fmt: skip
Setting("bfloat16", apply=bfloat16, wide=True, call=_in(torch.bfloat16), recipe="pipe.to(torch.bfloat16)",
        skip={"small": "the small model is moved by its user: vaccel says so"}, **MEMORY)  # fmt: skip
Setting("to the CPU", apply=to_cpu, neutral=True, recipe='pipe.to("cpu")', pipes=("wan", "sd"), **MEMORY)
Setting("bfloat16 and back", apply=there_and_back, wide=True, pipes=("wan",), recipe="pipe.to(...) twice", **MEMORY)
Setting("FreeU", apply=free_u, pipes=("sd",), recipe="pipe.enable_freeu(...)", **MEMORY)

# -- the VAE ---------------------------------------------------------------------------------------------------------


def tiling(pipe: Any) -> None:
    pipe.vae.enable_tiling(tile_sample_min_height=16, tile_sample_min_width=16, tile_sample_stride_height=8,
                           tile_sample_stride_width=8)  # fmt: skip


def slicing(pipe: Any) -> None:
    pipe.vae.enable_slicing()


def whole_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


Setting("VAE tiling", group="VAE", apply=tiling, pipes=("clip",), recipe="pipe.vae.enable_tiling()")
Setting("VAE slicing", group="VAE", apply=slicing, pipes=("clip",), recipe="pipe.vae.enable_slicing()")
Setting("the whole pipeline offloaded", group="VAE", apply=whole_offload, pipes=("clip",), neutral=True,
        recipe="pipe.enable_model_cpu_offload()")  # fmt: skip

# -- autograd --------------------------------------------------------------------------------------------------------


def frozen(pipe: Any) -> None:
    denoiser(pipe).requires_grad_(False)


def thawed(pipe: Any) -> None:
    denoiser(pipe).requires_grad_(True)


def training(pipe: Any) -> None:
    denoiser(pipe).train()


def evaluating(pipe: Any) -> None:
    denoiser(pipe).eval()


AUTOGRAD = {"group": "Autograd and modes", "neutral": True}
Setting("frozen", apply=frozen, recipe="transformer.requires_grad_(False)", pipes=("wan", "sd"), **AUTOGRAD)
Setting("thawed", first=frozen, apply=thawed, recipe="transformer.requires_grad_(True)", pipes=("wan",), **AUTOGRAD)
Setting("train()", apply=training, recipe="transformer.train()", pipes=("wan", "sd"), **{**AUTOGRAD, "neutral": False})
Setting("eval() again", first=training, apply=evaluating, recipe="transformer.eval()", pipes=("wan",), **AUTOGRAD)
Setting("torch.inference_mode", around=torch.inference_mode, recipe="with torch.inference_mode(): pipe(...)",
        orders=("before", "between"), pipes=("wan", "sd"), **AUTOGRAD)  # fmt: skip
Setting("torch.autocast", around=lambda: torch.autocast("cpu", torch.bfloat16), orders=("before", "between"),
        recipe="with torch.autocast(...): pipe(...)", pipes=("wan", "sd"),
        **{**AUTOGRAD, "neutral": False})  # fmt: skip
Setting("torch.enable_grad", around=torch.enable_grad, recipe="with torch.enable_grad(): pipe(...)",
        orders=("before", "between"), pipes=("wan",), **AUTOGRAD)  # fmt: skip
