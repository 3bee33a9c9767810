"""The methods: each a frozen config whose ``start(run)`` gives a fresh policy for one run."""

from .base import Method, Observation, Policy, RunInfo, Step, method_from_json
from .direction_magnitude import DirectionMagnitude
from .lemica import LeMiCa
from .mixcache import MixCache
from .schedule import Schedule
from .srdiffusion import SRDiffusion
from .teacache import TeaCache

__all__ = [
    "DirectionMagnitude",
    "LeMiCa",
    "Method",
    "MixCache",
    "Observation",
    "Policy",
    "RunInfo",
    "SRDiffusion",
    "Schedule",
    "Step",
    "TeaCache",
    "method_from_json",
]
