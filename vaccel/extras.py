"""What is installed beside vaccel only where it is asked for, and how a missing one is said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

#: extra -> the modules that it brings; of a module in several the first extra is named.
EXTRAS = {
    "diffusers": ("diffusers", "transformers", "accelerate", "tokenizers", "ftfy"),
    "cli": ("typer", "rich", "psutil"),
    "report": ("imageio", "imageio_ffmpeg", "matplotlib", "skimage", "jinja2", "PIL"),
    "app": ("gradio",),
    "train": ("peft",),
    "gpu": ("triton", "pynvml"),
    "ray": ("ray",),
    "quality": ("pycvvdp", "torchmetrics"),
}


def command(module: str) -> str:
    """What to type where this module is missing; "" for one that no extra brings."""
    top = module.partition(".")[0]
    found = next((extra for extra, modules in EXTRAS.items() if top in modules), None)
    return f"pip install 'vaccel[{found}]'" if found else ""


@contextlib.contextmanager
def needed(what: str) -> Iterator[None]:
    """Within the context a missing module of an extra is said with the command that brings it.

    Args:
        what: what needs it, such as "vaccel.accelerate".

    Raises ``ModuleNotFoundError`` for it; any other error is left as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        brings = command(error.name or "")
        if not brings or "pip install" in str(error):
            raise
        raise ModuleNotFoundError(f"{what} needs {error.name}: {brings}", name=error.name) from None
