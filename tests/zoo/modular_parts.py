"""What the cases of modular pipelines share; it registers no case itself."""

from __future__ import annotations

from collections.abc import Callable

from diffusers import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders import MagnitudeAwareGuidance
from diffusers.hooks import LayerSkipConfig

from .base import Case
from .image_parts import TWO, TWO_NEGATIVE

BATCH = {"prompt": TWO, "negative_prompt": TWO_NEGATIVE}


def cfg(scale: float = 5.0, **more) -> ClassifierFreeGuidance:
    return ClassifierFreeGuidance(guidance_scale=scale, **more)


def silent(blocks):
    """The blocks without progress bars, however deep; a pipeline's own switch reaches the outermost only."""
    for block in getattr(blocks, "sub_blocks", {}).values():
        silent(block)
    if hasattr(blocks, "set_progress_bar_config"):
        blocks.set_progress_bar_config(disable=True)
    return blocks


def assembled(kind: type, blocks, **components):
    """A modular pipeline of the blocks, with its components."""
    pipe = kind(blocks=silent(blocks))
    pipe.update_components(**components)
    return pipe


def case(name: str, build: Callable, call: Callable, output: str = "latents", **more) -> None:
    """A modular pipeline's case: it is asked for one of the things that its blocks make."""
    Case(name, build=build, call=lambda: {**call(), "output": output}, **{"modular": True, "batch": BATCH, **more})


def guiders(block: str, names: str) -> dict[str, Callable]:
    """The named ways of guiding; ``block`` is the list of blocks that some of them change, at its second.

    What skips layers makes a third prediction in some of the steps; ``AutoGuidance`` makes one with layers skipped
    instead of the one without the prompt.  An interval has to end with the last step: diffusers' blocks ask what the
    guider wanted last to find out whether the next call needs a negative prompt.
    """
    attention = {"fqn": block, "indices": [1], "skip_attention": False, "skip_attention_scores": True, "skip_ff": False}
    makers = {
        "no_guidance": lambda: cfg(1.0),
        "rescaled": lambda: cfg(guidance_rescale=0.5),
        "interval": lambda: cfg(start=0.4),
        "AdaptiveProjectedGuidance": lambda: AdaptiveProjectedGuidance(
            guidance_scale=5.0, adaptive_projected_guidance_momentum=-0.5, adaptive_projected_guidance_rescale=5.0
        ),
        "ClassifierFreeZeroStarGuidance": lambda: ClassifierFreeZeroStarGuidance(guidance_scale=5.0),
        "TangentialClassifierFreeGuidance": lambda: TangentialClassifierFreeGuidance(guidance_scale=5.0),
        "MagnitudeAwareGuidance": lambda: MagnitudeAwareGuidance(guidance_scale=5.0),
        "SkipLayerGuidance": lambda: SkipLayerGuidance(
            guidance_scale=5.0,
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=0.7,
            skip_layer_config=LayerSkipConfig(indices=[1], fqn=block),
        ),
        "PerturbedAttentionGuidance": lambda: PerturbedAttentionGuidance(
            guidance_scale=5.0,
            perturbed_guidance_start=0.0,
            perturbed_guidance_stop=0.7,
            perturbed_guidance_config=LayerSkipConfig(**attention),
        ),
        "AutoGuidance": lambda: AutoGuidance(
            guidance_scale=5.0, dropout=1.0, auto_guidance_config=LayerSkipConfig(indices=[1], fqn=block, dropout=1.0)
        ),
    }
    return {name: makers[name] for name in names.split()}
