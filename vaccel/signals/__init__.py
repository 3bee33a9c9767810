"""What a method may watch of a run.  One file a signal; a method names them by their classes."""

from .block_changes import BlockChanges
from .branches import Branches
from .conditional import Conditional
from .denoised import Denoised
from .forecast_error import ForecastError
from .latents import Latents
from .prediction import Prediction
from .signal import SIGNALS, Signal
from .small_output import SmallOutput
from .timestep_embedding import TimestepEmbedding
from .velocity import Velocity
from .velocity_products import VelocityProducts

__all__ = [
    "SIGNALS",
    "BlockChanges",
    "Branches",
    "Conditional",
    "Denoised",
    "ForecastError",
    "Latents",
    "Prediction",
    "Signal",
    "SmallOutput",
    "TimestepEmbedding",
    "Velocity",
    "VelocityProducts",
]
