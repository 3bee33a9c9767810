"""What the shell is offered after an option; nothing here imports torch, since a key was pressed and somebody waits."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence

#: The methods that ``-m`` takes, those of ``vaccel.__all__``, each as it could be called.
METHODS = {
    "Auto": "Auto(psnr=40)",
    "DirectionMagnitude": "DirectionMagnitude(threshold=0.005)",
    "DualExpert": "DualExpert(folder='dual_expert', steps=4)",
    "EasyCache": "EasyCache(threshold=0.05)",
    "Forecast": "Forecast(artifact='forecast.json', budget=17)",
    "LeMiCa": "LeMiCa(artifact='lemica.json', budget=17)",
    "MixCache": "MixCache(artifact='mixcache.json')",
    "SRDiffusion": "SRDiffusion(threshold=0.01)",
    "Schedule": "Schedule(full_steps=[0, 1, 2, 4, 6, 9], num_steps=10)",
    "TeaCache": "TeaCache(artifact='teacache.json', threshold=0.1)",
}
#: Those that are calibrated, and the command of ``vaccel calibrate`` that does it.
CALIBRATED = {
    "Auto": "forecast",
    "Forecast": "forecast",
    "LeMiCa": "lemica",
    "MixCache": "mixcache",
    "TeaCache": "teacache",
}
#: diffusers' own caches, which it takes too.
CACHES = ("diffusers.FirstBlockCache", "diffusers.MagCache", "diffusers.SeaCache", "diffusers.TaylorSeer")


def among(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A completion with those of the known words that begin with what is typed."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in known if word.startswith(incomplete)]

    return complete


methods = among((*METHODS, *CACHES, "steps"))


def after(method: str, pipeline: str, steps: int) -> str:
    """What to type where a method, as it was written, could not be used with a pipeline in so many steps."""
    name = re.split(r"\W", method.strip(), maxsplit=1)[0]
    pipeline = shlex.quote(pipeline)
    if name in CALIBRATED and "artifact" in method:
        return f"vaccel calibrate {CALIBRATED[name]} {pipeline} --steps {steps}"
    if name == "DualExpert":
        return f"vaccel distill {pipeline} --data DATA --stage semantic"
    return f'-m "{METHODS.get(name, METHODS["Auto"])}"'
