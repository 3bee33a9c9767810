"""The vocabulary of a step: what may stand in for the full forward.  One file an action.

A method picks an action, the engine carries it out.  To add one is to add a file: its letter, what it reuses
(``missing``) and how it is carried out (``run``).
"""

from .base import ACTIONS, Action, Branches, ModelName, ReuseLevel, from_json
from .expert import Expert
from .forecast import Forecast
from .full import Full
from .guidance import Guidance
from .output import Output
from .rescale import Rescale
from .residual import Residual
from .resume import Resume
from .small import Small
from .weights import Weights

__all__ = [
    "ACTIONS",
    "Action",
    "Branches",
    "Expert",
    "Forecast",
    "Full",
    "Guidance",
    "ModelName",
    "Output",
    "Rescale",
    "Residual",
    "Resume",
    "ReuseLevel",
    "Small",
    "Weights",
    "from_json",
]
