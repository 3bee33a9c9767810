"""vLLM's part under vLLM-Omni's wheel, doubled: the wheel imports and its diffusion classes run on a CPU without vLLM.

vLLM itself needs a GPU's toolchain to install.  What vLLM-Omni's diffusion side takes from it is little: parallel
linear layers (with one process they are ``nn.Linear``), ranks, a logger, enums.  Those are written here from their
public interface; any other name is an empty class, so that a module which merely mentions it can be imported.  The
package ``vllm_omni`` is the wheel's own code but for its ``__init__``, which patches vLLM.
"""

from __future__ import annotations

import abc
import enum
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import nn
from typing_extensions import TypedDict


def found() -> Path | None:
    """Where vLLM-Omni is installed; None where it is not."""
    try:
        return Path(str(importlib.metadata.distribution("vllm-omni").locate_file("vllm_omni")))
    except importlib.metadata.PackageNotFoundError:
        return None


class Linear(nn.Linear):
    """A parallel linear layer in one process."""

    def __init__(self, input_size: int, output_size: int, *, bias: bool = True, return_bias: bool = True, **_: Any):
        super().__init__(input_size, output_size, bias=bias)
        self.return_bias = return_bias

    def forward(self, x: torch.Tensor) -> Any:
        out = super().forward(x)
        return (out, None) if self.return_bias else out


class QKVParallelLinear(Linear):
    def __init__(
        self, hidden_size: int, head_size: int, total_num_heads: int, total_num_kv_heads: int | None = None, **more: Any
    ):
        kv_heads = total_num_kv_heads or total_num_heads
        super().__init__(hidden_size, (total_num_heads + 2 * kv_heads) * head_size, **more)
        self.num_heads, self.num_kv_heads = total_num_heads, kv_heads


class MergedColumnParallelLinear(Linear):
    def __init__(self, input_size: int, output_sizes: list[int], **more: Any):
        super().__init__(input_size, sum(output_sizes), **more)


class RMSNorm(nn.RMSNorm):
    def __init__(self, hidden_size: int, eps: float = 1e-6, **_: Any):
        super().__init__(hidden_size, eps=eps)


class SiluAndMul(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return nn.functional.silu(gate) * up


class Logger(logging.LoggerAdapter):
    def warning_once(self, message: str, *args: Any, **_: Any) -> None:
        self.warning(message, *args)

    info_once = debug_once = lambda self, message, *args, **_: self.debug(message, *args)


class PlatformEnum(enum.Enum):
    CPU, CUDA, ROCM, TPU, XPU, OOT, UNSPECIFIED = range(7)


class Platform:
    @classmethod
    def is_cpu(cls) -> bool:
        return True

    @classmethod
    def is_available(cls) -> bool:
        return False  # no device whose memory could be emptied

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class IntermediateTensors(dict):
    pass


def make_layers(count: int, make: Any, prefix: str) -> tuple[int, int, nn.ModuleList]:
    return 0, count, nn.ModuleList(make(prefix=f"{prefix}.{n}") for n in range(count))


def dataclass(kind: Any = None, **options: Any) -> Any:
    """vLLM's ``config``: pydantic's dataclass, with its settings."""
    made = pydantic.dataclasses.dataclass(config=pydantic.ConfigDict(arbitrary_types_allowed=True))
    return made(kind) if kind is not None else made


def by_name(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


#: Packages of the wheel that are imported without their ``__init__``.
MODELS = ("wan2_2", "qwen_image", "sd3", "hunyuan_video", "z_image", "ltx2")
BARE = ("vllm_omni", *(f"vllm_omni.diffusion.models.{name}" for name in MODELS))
#: Packages that are doubled.
DOUBLED = ("vllm", "modelscope", "av")
#: module -> what of it is more than an empty class
REAL: dict[str, dict[str, Any]] = {
    "vllm": {"__version__": "0.30.0", "__version_tuple__": (0, 30, 0)},
    "vllm.version": {"__version__": "0.30.0", "__version_tuple__": (0, 30, 0)},
    "vllm.logger": {"init_logger": lambda name: Logger(logging.getLogger(name), {}), "logger": logging.getLogger()},
    "vllm.inputs": {n: TypedDict(n, {}) for n in ("EmbedsPrompt", "TextPrompt", "TokensPrompt", "PromptType")},
    "vllm.inputs.engine": {"TokensInput": TypedDict("TokensInput", {})},
    "vllm.envs": {"VLLM_PLUGINS": None},
    "vllm.plugins": {"load_general_plugins": lambda: None},
    "vllm.distributed": {
        "get_tensor_model_parallel_rank": lambda: 0,
        "get_tensor_model_parallel_world_size": lambda: 1,
        "tensor_model_parallel_all_reduce": lambda x: x,
        "tensor_model_parallel_all_gather": lambda x, dim=-1: x,
    },
    "vllm.model_executor.layers.quantization": {"QUANTIZATION_METHODS": []},
    "vllm.model_executor.layers.conv": {"Conv3dLayer": nn.Conv3d},
    "vllm.model_executor.layers.linear": {
        "ColumnParallelLinear": Linear, "RowParallelLinear": Linear, "ReplicatedLinear": Linear, "LinearBase": Linear,
        "QKVParallelLinear": QKVParallelLinear, "MergedColumnParallelLinear": MergedColumnParallelLinear,
    },
    "vllm.model_executor.layers.layernorm": {"RMSNorm": RMSNorm},
    "vllm.model_executor.layers.activation": {"SiluAndMul": SiluAndMul},
    "vllm.model_executor.models.utils": {
        "make_layers": make_layers, "PPMissingLayer": nn.Identity,
        "make_empty_intermediate_tensors_factory": lambda *_: None,
        "extract_layer_index": lambda prefix: int(next(part for part in prefix.split(".") if part.isdecimal())),
    },
    "vllm.config.utils": {"config": dataclass},
    "vllm.utils.import_utils": {"resolve_obj_by_qualname": by_name},
    "vllm.platforms": {"Platform": Platform, "PlatformEnum": PlatformEnum},
    "vllm.platforms.interface": {"PlatformEnum": PlatformEnum},
    "vllm.sequence": {"IntermediateTensors": IntermediateTensors},
    "vllm.triton_utils": {"HAS_TRITON": False},
}  # fmt: skip


class _Members(abc.ABCMeta):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Members(name, (Named,), {})


class Named(metaclass=_Members):
    """What a name stands for that nothing here depends on."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __init_subclass__(cls, **_: Any):
        super().__init_subclass__()


class _Double(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Members(name, (Named,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] not in DOUBLED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        made = _Double(spec.name)
        made.__dict__.update(REAL.get(spec.name, {}))
        return made

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """From now on this process imports vLLM-Omni over the double.

    Raises ``RuntimeError`` where it is not installed.
    """
    folder = found()
    if folder is None:
        raise RuntimeError("vllm-omni is not installed: `make test` brings it, without what it asks for")
    sys.meta_path.insert(0, _Finder())
    for name in BARE:  # whose own __init__ patches vLLM, or imports every pipeline
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    from vllm_omni.diffusion.distributed import parallel_state

    alone = types.SimpleNamespace(world_size=1, rank_in_group=0)
    parallel_state._PP = parallel_state._SP = parallel_state._DP = parallel_state._CFG = alone
    from vllm_omni.diffusion.attention.backends import sdpa
    from vllm_omni.platforms import interface

    # They know no CPU: torch's own attention, which they call on a GPU, is what there is.
    path = f"{sdpa.__name__}.SDPABackend"
    interface.UnspecifiedOmniPlatform.get_diffusion_attn_backend_cls = classmethod(lambda *_, **__: path)
    sdpa.SDPAImpl.forward = sdpa.SDPAImpl.forward_cuda
