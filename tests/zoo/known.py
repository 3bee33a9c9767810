"""The pipelines that cannot be accelerated, with the error that says so and why."""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """``error`` is a pattern of what is raised, ``why`` is for the table of pipelines."""

    error: str
    why: str


_TOKENS = Known("none of that has the shape", "it predicts which token comes, not noise: nothing of its input's shape")
_NO_TIME = Known("takes no timestep", "it predicts which token comes, and is not told the time")
_GRADIENTS = Known("no gradients", "it differentiates through its U-Net at every step")

KNOWN: dict[str, Known] = {
    "AmusedPipeline": _NO_TIME,
    "AmusedImg2ImgPipeline": _NO_TIME,
    "AmusedInpaintPipeline": _NO_TIME,
    "VQDiffusionPipeline": _TOKENS,
    "StableDiffusionAttendAndExcitePipeline": _GRADIENTS,
    "StableDiffusionPix2PixZeroPipeline": _GRADIENTS,
    "StableDiffusionSAGPipeline": Known(
        "invalid for input of size", "it reads attention maps out of every call's U-Net"
    ),
    "ScoreSdeVePipeline": Known(
        "skipping changes nothing", "its samples overflow with random weights: nothing could be compared"
    ),
    "KarrasVePipeline": Known("could not be located", "its noise levels are drawn anew at every step"),
    "StableDiffusionParadigmsPipeline": Known("could not be located", "many timesteps are computed in one batch"),
    "LEditsPPPipelineStableDiffusion": Known("out of order", "its loop follows the timesteps of its inversion"),
    "LEditsPPPipelineStableDiffusionXL": Known("out of order", "its loop follows the timesteps of its inversion"),
    "AnyFlowFARPipeline": Known(
        "something else than predictions", "some of its calls only fill its cache of keys and values"
    ),
}
