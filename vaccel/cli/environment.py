"""What is installed, built and usable here, so that nothing absent is discovered by a crash."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from typing import Any

import torch

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "triton", "flash-attn", "sageattention", "nvidia-ml-py")


def diagnose() -> dict[str, Any]:
    """Versions, what was built, GPUs and attention backends; plain data."""
    from .. import __version__
    from ..evaluate.fidelity import METRICS
    from ..ops._dispatch import TRITON
    from ..ops._native import CUDA_DETAIL, CUDA_LOADED, DETAIL, LOADED
    from ..planning import schedules

    return {
        "vaccel": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "native": {
            "cpu_kernels": LOADED,
            "detail": DETAIL,
            "cuda_kernels": CUDA_LOADED,
            "cuda_detail": CUDA_DETAIL,
            "triton_kernels": TRITON,
            "schedule_solver": schedules.LOADED,
            "solver_detail": schedules.DETAIL,
        },
        "compilers": {name: _first_line(name) for name in ("g++", "nvcc")},
        "cpu": {"threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()},
        "gpus": _gpus(),
        "attention": _attention(),
        "metrics": {metric.name: metric.missing() or "available" for metric in METRICS.values()},
        "demo_family": _demo(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(program: str) -> str | None:
    """The last line of ``program --version`` that has a number in it, or None where there is no such program."""
    path = shutil.which(program)
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    numbered = [line for line in said if any(c.isdigit() for c in line)]
    return (numbered[0] if program != "nvcc" else numbered[-1]) if numbered else path


def _gpus() -> list[dict[str, Any]] | str:
    """GPUs by nvidia-ml-py, or the reason there are none to see."""
    try:
        import pynvml
    except ImportError:
        return "nvidia-ml-py is not installed: pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"no NVIDIA driver: {error}"
    gpus = []
    for i in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(i)
        name = pynvml.nvmlDeviceGetName(handle)
        gpus.append(
            {
                "name": name if isinstance(name, str) else name.decode(),
                "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                "compute_capability": ".".join(map(str, pynvml.nvmlDeviceGetCudaComputeCapability(handle))),
                "driver": str(pynvml.nvmlSystemGetDriverVersion()),
            }
        )
    return gpus or "no GPU"


def _attention() -> dict[str, bool]:
    """Attention backends that could be used here."""
    return {
        "sdpa": True,
        "cudnn": torch.cuda.is_available() and torch.backends.cudnn.is_available(),
        "flash-attn 2": importlib.util.find_spec("flash_attn") is not None,
        "flash-attn 3": importlib.util.find_spec("flash_attn_interface") is not None,
        "sageattention": importlib.util.find_spec("sageattention") is not None,
    }


def _demo() -> str:
    from ..demo.family import shipped_folder

    folder = shipped_folder()
    return str(folder) if (folder / "pipeline" / "model_index.json").is_file() else f"not found at {folder}"
