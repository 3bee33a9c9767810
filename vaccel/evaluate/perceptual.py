"""Metrics that are models of what people see and need packages or weights of their own: LPIPS and ColorVideoVDP."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from .clips import as_uint8, enlarged

#: Where a clip is thought to be seen (ColorVideoVDP's name): a 24-inch Full HD monitor, 200 cd/m2, from 0.6 m.
DISPLAY = "standard_fhd"


@functools.cache
def lpips_missing() -> str:
    """Why LPIPS cannot be measured here, or "" when it can.  Its weights are never downloaded."""
    try:
        import torchmetrics.image.lpip  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        return f"{error.name or error} is not installed"
    except Exception as error:
        return f"torchvision cannot be imported ({error})"
    home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    if not list(home.glob("hub/checkpoints/alexnet*")):
        return f"no AlexNet weights under {home}/hub/checkpoints"
    return ""


@functools.cache
def _lpips_network():
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)


def lpips(reference: np.ndarray, clip: np.ndarray) -> float | None:
    """LPIPS (AlexNet) of [F, H, W, 3] in [0, 1], mean over the frames; None where its weights are not installed."""
    if lpips_missing():
        return None
    import torch

    def tensor(frames: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(frames)).float().permute(0, 3, 1, 2)

    with torch.no_grad():
        return float(_lpips_network()(tensor(clip), tensor(reference)))


@functools.cache
def cvvdp_missing() -> str:
    """Why ColorVideoVDP cannot be measured here, or "" when it can.  Its parameters come with its package."""
    import torch

    try:
        import pycvvdp  # noqa: F401
    except ImportError as error:
        version = torch.__version__.partition("+")[0]  # torchvision would otherwise bring a torch of its own
        return f"{error.name or error} is not installed: pip install 'vaccel[quality]' torch=={version}"
    except Exception as error:  # a torchvision of another torch says RuntimeError
        return f"its package cannot be imported ({type(error).__name__}: {error}); is torchvision that of this torch?"
    return ""


def cvvdp(reference: np.ndarray, clip: np.ndarray, fps: float = 12) -> float | None:
    """Quality in just-objectionable differences (JOD) by ColorVideoVDP; None where it is not installed.

    Mantiuk et al., SIGGRAPH 2024: 10 is no visible difference; one JOD less is the difference in quality that 75 % of
    viewers find against the reference in a pairwise comparison.  It sees colour, and time: flicker and its frequency.
    The clips are rounded to 8 bits, small ones enlarged as they are when they are saved (``clips.enlarged``), and
    shown on a Full HD monitor (``DISPLAY``).  A single frame is measured as an image.

    Args:
        reference, clip: [F, H, W, 3] in [0, 1].
        fps: frames a second.
    """
    if cvvdp_missing():
        return None
    import torch

    devices = [torch.device("cuda")] if torch.cuda.is_available() else []
    for device in (*devices, torch.device("cpu")):
        try:
            return _jod(reference, clip, fps, device)
        except torch.OutOfMemoryError:  # the pipeline's weights leave no room
            if device.type == "cpu":
                raise
    return None


def _jod(reference: np.ndarray, clip: np.ndarray, fps: float, device: Any) -> float:
    """The metric's buffers live for one clip: what is measured next has the device to itself."""
    import pycvvdp
    import torch

    metric = pycvvdp.cvvdp(display_name=DISPLAY, quiet=True, device=device)
    shown = [torch.from_numpy(enlarged(as_uint8(frames))) for frames in (clip, reference)]
    with torch.no_grad():
        jod, _ = metric.predict(*shown, dim_order="FHWC", frames_per_second=fps if len(clip) > 1 else 0)  # 0: an image
    return float(jod)
