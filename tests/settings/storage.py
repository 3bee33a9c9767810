"""Weights that are stored otherwise than they are computed with: layer-wise casting, torchao, bitsandbytes, GGUF."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from .base import Setting
from .lora import add
from .offload import denoiser, model_offload


def casting(pipe: Any) -> None:
    denoiser(pipe).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def casting_e5m2(pipe: Any) -> None:
    denoiser(pipe).enable_layerwise_casting(storage_dtype=torch.float8_e5m2, compute_dtype=torch.float32)


def casting_and_offload(pipe: Any) -> None:
    casting(pipe)
    model_offload(pipe)


def casting_and_groups(pipe: Any) -> None:
    casting(pipe)
    cpu = torch.device("cpu")
    denoiser(pipe).enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def casting_and_lora(pipe: Any) -> None:
    add(pipe)
    casting(pipe)


def _inner_linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers inside of blocks, with who holds them."""
    return [
        (parent, name, child)
        for path, parent in model.named_modules()
        if "block" in path
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]


def torchao(config_of: Any) -> Any:
    def apply(pipe: Any) -> None:
        logging.disable(logging.WARNING)
        from torchao.quantization import quantize_

        quantize_(
            denoiser(pipe), config_of(), filter_fn=lambda module, name: type(module) is nn.Linear and "block" in name
        )

    return apply


def int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def fp8() -> Any:
    from torchao.quantization import Float8WeightOnlyConfig

    return Float8WeightOnlyConfig()


def int8_dynamic() -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig()


def int8_and_offload(pipe: Any) -> None:
    torchao(int8)(pipe)
    model_offload(pipe)


def int8_and_lora(pipe: Any) -> None:
    torchao(int8)(pipe)
    add(pipe, targets=("to_q", "to_v"))


def bitsandbytes_8(pipe: Any) -> None:
    import bitsandbytes

    def made(linear: nn.Linear) -> nn.Module:
        new = bitsandbytes.nn.Linear8bitLt(
            linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False
        )
        new.load_state_dict(linear.state_dict())
        return new.to("cpu")

    _replace(pipe, made)


def bitsandbytes_4(pipe: Any) -> None:
    import bitsandbytes

    def made(linear: nn.Linear) -> nn.Module:
        new = bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, quant_type="nf4",
            compute_dtype=torch.float32,
        )  # fmt: skip
        new.load_state_dict(linear.state_dict())
        return new.to("cpu")

    _replace(pipe, made)


def gguf(pipe: Any) -> None:
    """As diffusers' loader makes them: layers that hold packed blocks of 32 numbers, unpacked at every call."""
    import gguf as library
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = library.GGMLQuantizationType.Q8_0

    def made(linear: nn.Linear) -> nn.Module:
        packed = library.quants.quantize(linear.weight.detach().float().numpy(), kind)
        new = GGUFLinear(linear.in_features, linear.out_features, linear.bias is not None, torch.float32)
        new.weight = GGUFParameter(torch.from_numpy(packed), quant_type=kind)
        new.bias = linear.bias
        return new

    _replace(pipe, made, multiple=32)


def _replace(pipe: Any, made: Any, multiple: int = 1) -> None:
    for parent, name, linear in _inner_linears(denoiser(pipe)):
        if linear.in_features % multiple == 0:
            parent._modules[name] = made(linear).requires_grad_(False)


CASTING = {"group": "Layer-wise casting"}
Setting("fp8 storage", apply=casting, recipe="transformer.enable_layerwise_casting(torch.float8_e4m3fn, ...)",
        **CASTING)  # fmt: skip
Setting("fp8 storage, e5m2", apply=casting_e5m2, recipe="transformer.enable_layerwise_casting(torch.float8_e5m2, ...)",
        pipes=("wan",), **CASTING)  # fmt: skip
Setting("fp8 storage and model offload", apply=casting_and_offload, recipe="both", pipes=("wan", "flux"), **CASTING)
Setting("fp8 storage and group offload", apply=casting_and_groups, recipe="both", pipes=("wan",), **CASTING)
Setting("fp8 storage and a LoRA", apply=casting_and_lora, recipe="the LoRA first", pipes=("wan",), **CASTING)
QUANTISED = {"group": "Quantised weights"}
AO = {"needs": ("torchao",), **QUANTISED}
Setting("torchao int8", apply=torchao(int8), recipe="quantize_(transformer, Int8WeightOnlyConfig())", **AO)
Setting("torchao fp8", apply=torchao(fp8), recipe="quantize_(transformer, Float8WeightOnlyConfig())",
        pipes=("wan", "flux"), **AO)  # fmt: skip
Setting("torchao int8, activations too", apply=torchao(int8_dynamic), pipes=("wan", "sd"),
        recipe="quantize_(transformer, Int8DynamicActivationInt8WeightConfig())", **AO)  # fmt: skip
Setting("torchao int8 and model offload", apply=int8_and_offload, recipe="both", pipes=("wan",), **AO)
Setting("torchao int8 and a LoRA", apply=int8_and_lora, recipe="the LoRA last", pipes=("wan",), **AO)
BNB = {"needs": ("bitsandbytes",), "pipes": ("wan",), **QUANTISED}
Setting("bitsandbytes int8", apply=bitsandbytes_8, recipe="bitsandbytes.nn.Linear8bitLt", **BNB)
Setting("bitsandbytes nf4", apply=bitsandbytes_4, recipe="bitsandbytes.nn.Linear4bit", **BNB)
Setting("GGUF Q8_0", apply=gguf, recipe="from_single_file(..., GGUFQuantizationConfig(...))", needs=("gguf",),
        pipes=("wan", "flux"), **QUANTISED)  # fmt: skip
