"""LoRA: loaded, scaled, fused, switched, swapped in place, taken off."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from .base import Setting
from .offload import denoiser, group_whole_pipeline

#: Attention, and the output projection, which lies at the transformer's root.
TARGETS = ("to_q", "to_v", "proj_out")


def add(pipe: Any, name: str = "one", seed: int = 3, targets: tuple[str, ...] = TARGETS) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), init_lora_weights=False)
    denoiser(pipe).add_adapter(config, adapter_name=name)


def two(pipe: Any) -> None:
    add(pipe, "one", 3)
    add(pipe, "two", 4)
    denoiser(pipe).set_adapters(["one"])


def other(pipe: Any) -> None:
    denoiser(pipe).set_adapters(["two"])


def both(pipe: Any) -> None:
    denoiser(pipe).set_adapters(["one", "two"], [0.7, 0.3])


def weaker(pipe: Any) -> None:
    denoiser(pipe).set_adapters(["one"], [0.25])


def off(pipe: Any) -> None:
    denoiser(pipe).disable_adapters()


def fuse(pipe: Any) -> None:
    denoiser(pipe).fuse_lora()


def fused(pipe: Any) -> None:
    add(pipe)
    fuse(pipe)


def unfuse(pipe: Any) -> None:
    denoiser(pipe).unfuse_lora()


def unload(pipe: Any) -> None:
    denoiser(pipe).unload_lora()


def delete(pipe: Any) -> None:
    denoiser(pipe).delete_adapters(["one"])
    denoiser(pipe).set_adapters(["two"])


def weights(pipe: Any, seed: int) -> dict[str, torch.Tensor]:
    """What a file of an adapter for these layers holds."""
    model = denoiser(pipe)
    twin = getattr(diffusers, type(model).__name__).from_config(model.config)
    twin.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS)))
    generator, prefix = torch.Generator().manual_seed(seed), "unet" if hasattr(pipe, "unet") else "transformer"
    state = get_peft_model_state_dict(twin, adapter_name="default")
    return {f"{prefix}.{k}": torch.randn(v.shape, generator=generator) * 0.1 for k, v in state.items()}


def load(pipe: Any) -> None:
    pipe.load_lora_weights(weights(pipe, 5), adapter_name="file")


def hotswap(pipe: Any) -> None:
    pipe.load_lora_weights(weights(pipe, 6), adapter_name="file", hotswap=True)


def unload_pipeline(pipe: Any) -> None:
    pipe.unload_lora_weights()


def fuse_pipeline(pipe: Any) -> None:
    load(pipe)
    pipe.fuse_lora(components=["unet" if hasattr(pipe, "unet") else "transformer"])


def offloaded(pipe: Any) -> None:
    group_whole_pipeline(pipe)
    load(pipe)


LORA = {"group": "LoRA"}
Setting("LoRA added", apply=add, recipe="transformer.add_adapter(config)", **LORA)
Setting("LoRA loaded", apply=load, recipe="pipe.load_lora_weights(...)", **LORA)
Setting(
    "LoRA scaled", first=add, apply=weaker, recipe='pipe.set_adapters(["one"], [0.25])', pipes=("wan", "sd"), **LORA
)
Setting("LoRA switched", first=two, apply=other, recipe='pipe.set_adapters(["two"])', pipes=("wan", "sd"), **LORA)
Setting("two LoRAs mixed", first=two, apply=both, recipe='pipe.set_adapters(["one", "two"], [0.7, 0.3])',
        pipes=("wan", "flux"), **LORA)  # fmt: skip
Setting("LoRA hot-swapped", first=load, apply=hotswap, recipe="pipe.load_lora_weights(..., hotswap=True)", **LORA)
Setting("LoRA switched off", first=add, apply=off, recipe="pipe.disable_lora()", pipes=("wan", "sd"), **LORA)
Setting("LoRA deleted", first=two, apply=delete, recipe='pipe.delete_adapters("one")', pipes=("wan", "flux"), **LORA)
Setting("LoRA fused", apply=fuse_pipeline, recipe="pipe.fuse_lora()", **LORA)
Setting("LoRA unfused", first=fused, apply=unfuse, recipe="pipe.unfuse_lora()", pipes=("wan", "sd"), **LORA)
Setting("LoRA unloaded", first=load, apply=unload_pipeline, recipe="pipe.unload_lora_weights()", **LORA)
Setting("LoRA loaded on an offloaded pipeline", apply=offloaded, pipes=("wan", "sd"),
        recipe="pipe.enable_group_offload(...); pipe.load_lora_weights(...)", **LORA)  # fmt: skip
