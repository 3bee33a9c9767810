"""``vaccel`` alone: what it is, what is here, and what one can do next."""

from __future__ import annotations

from .console import say

ABOUT = "Diffusion video generation several times faster, faithful to the model."
#: (what for, what to type), for someone new.
NEXT = (
    ("See full and fast side by side, on the family that ships with it", "vaccel demo --out out/demo"),
    ("Make a clip", 'vaccel generate "a red circle moves left slowly on a gray background" --out clip.gif'),
    ("Try it in the browser, with a slider for the speed", "vaccel app"),
    ("See what was computed for it", "vaccel explain clip.trace.json"),
    ("See what it knows of a pipeline (a folder, or a class of diffusers)", "vaccel doctor --pipeline WanPipeline"),
    (
        "Measure a model of your own",
        "vaccel calibrate forecast path/to/pipeline -p PROMPT --out forecast.json",
    ),
    (
        "Compare on it",
        "vaccel compare path/to/pipeline -p PROMPT -m \"Auto(artifact='forecast.json', psnr=40)\"",
    ),
    ("See what is installed and built here", "vaccel doctor"),
    ("All commands and options", "vaccel --help"),
)


def home() -> None:
    """Prints the screen; every command on it is a line of its own, to be pasted."""
    say(f"vaccel: {ABOUT}", "bold")
    say(f"here: {here()}\n")
    for what, command in NEXT:
        say(f"{what}:", "dim")
        say(f"  {command}")


def here() -> str:
    """Version, torch, device and kernels in a line."""
    import torch

    from .. import __version__

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    named = torch.cuda.get_device_name() if cuda else f"CPU with {torch.get_num_threads()} threads"
    return f"vaccel {__version__}, torch {torch.__version__}, {named}, {_kernels(device)}"


def _kernels(device: object) -> str:
    from ..ops import certified

    if certified.off():
        return "kernels turned off (VACCEL_KERNELS=torch)"
    if certified.table(device) is not None:
        return "kernels certified"
    if not certified.implementations(device):
        return "no kernels of its own built: torch's are used"
    return "kernels not certified (vaccel doctor --certify)"
