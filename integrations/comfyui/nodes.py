"""The two nodes: one accelerates a model, one shows what its last sampling did.

Everything they do is in the package (``vaccel.integrations.comfyui``); nothing of ComfyUI is imported.
"""

from __future__ import annotations

from typing import Any

from vaccel.integrations.comfyui import AIMS, METHODS, Choice, journal_of, patched

AMOUNTS = (
    "speed: 2 computes every second call; psnr: in dB, from 48 on nobody sees a difference; computed calls: how many"
)


class VaccelAccelerate:
    """MODEL in, MODEL out: samplings with it compute only some of their calls."""

    CATEGORY = "model_patches/vaccel"
    DESCRIPTION = (
        "Computes the network only where it has to be, and forecasts the rest from what it computed. Works on any "
        "model that ComfyUI loads, with nothing to calibrate."
    )
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "accelerate"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        told = "; ".join(f"{method}: {', '.join(aims)}" for method, aims in METHODS.items())
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model to accelerate; it stays as it is."}),
                "method": (list(METHODS), {"default": "Auto", "tooltip": "Auto and Forecast stay nearest."}),
                "aim": (list(AIMS), {"default": "speed", "tooltip": f"What the amount is. {told}."}),
                "amount": ("FLOAT", {"default": 2.0, "min": 0.0, "max": 1000.0, "step": 0.01, "tooltip": AMOUNTS}),
                "start_percent": ("FLOAT", {"default": 0.0, **share, "tooltip": "Before this all calls are computed."}),
                "end_percent": ("FLOAT", {"default": 1.0, **share, "tooltip": "After this all calls are computed."}),
            },
            "optional": {
                "calls": ("STRING", {"default": "", "tooltip": 'Of a Schedule by list: "0-9, 12, 15" are computed.'}),
            },
        }  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(  # noqa: N802  ComfyUI's name
        cls, method: Any = None, aim: Any = None, amount: Any = None, start_percent: Any = None,
        end_percent: Any = None, calls: Any = "",
    ) -> bool | str:  # fmt: skip
        """Said at the node before anything runs; what comes over a link is not known yet, and judged when it is."""
        given = (method, aim, amount, start_percent, end_percent, calls)
        if any(value is None for value in given):
            return True
        try:
            Choice(*given)
        except (ValueError, TypeError) as error:
            return str(error)
        return True

    def accelerate(
        self,
        model: Any,
        method: str,
        aim: str,
        amount: float,
        start_percent: float,
        end_percent: float,
        calls: str = "",
    ) -> tuple[Any]:
        return (patched(model, Choice(method, aim, amount, start_percent, end_percent, calls)),)


class VaccelTrace:
    """What the last sampling did: its timeline, computed calls, and the fidelity that was predicted.

    The latent goes through: it is there so that the node comes after the sampler.
    """

    CATEGORY = "model_patches/vaccel"
    DESCRIPTION = "Shows which calls the last sampling computed, and how near to the full run it is expected to be."
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "report")
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model as vaccel accelerate gives it, or anything behind that."}),
                "latent": ("LATENT", {"tooltip": "What the sampler made of it."}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:  # noqa: N802  ComfyUI's name
        """Always: a sampling leaves a new trace though the model is the same object."""
        return float("nan")

    def show(self, model: Any, latent: Any) -> dict[str, Any]:
        journal = journal_of(model)
        if journal is None:
            report = "this model does not come from vaccel accelerate"
        else:
            report = journal.last.report() if journal.last is not None else "nothing was sampled with this model yet"
        return {"ui": {"text": (report,)}, "result": (latent, report)}


NODE_CLASS_MAPPINGS = {"VaccelAccelerate": VaccelAccelerate, "VaccelTrace": VaccelTrace}
NODE_DISPLAY_NAME_MAPPINGS = {"VaccelAccelerate": "vaccel accelerate", "VaccelTrace": "vaccel trace"}
