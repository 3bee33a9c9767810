"""The methods: each a frozen config whose ``start(run)`` gives a fresh policy for one run."""

from .auto import Auto
from .base import ExpertWeights, Method, Observation, Policy, RunInfo, Step, method_from_json
from .direction_magnitude import DirectionMagnitude
from .dual_expert import DualExpert
from .easycache import EasyCache
from .forecast import Forecast
from .lemica import LeMiCa
from .mixcache import MixCache
from .recording import Recording
from .schedule import Schedule
from .srdiffusion import SRDiffusion
from .teacache import TeaCache

__all__ = [
    "Auto",
    "DirectionMagnitude",
    "DualExpert",
    "EasyCache",
    "ExpertWeights",
    "Forecast",
    "LeMiCa",
    "Method",
    "MixCache",
    "Observation",
    "Policy",
    "Recording",
    "RunInfo",
    "SRDiffusion",
    "Schedule",
    "Step",
    "TeaCache",
    "method_from_json",
]
