"""What computed steps leave behind for later ones.  One file a store.

A method declares its stores, the engine makes a slot of each for every kind of call of a run, and actions read them.
"""

from .block_residual import BlockResidual
from .block_states import BlockState, BlockStates
from .buffers import Buffers
from .guidance_delta import GuidanceDelta
from .last_output import LastOutput
from .output_residual import OutputResidual
from .readings import Reading
from .store import STORES, Slot, Store
from .velocity_history import VelocityHistory

__all__ = [
    "STORES",
    "BlockResidual",
    "BlockState",
    "BlockStates",
    "Buffers",
    "GuidanceDelta",
    "LastOutput",
    "OutputResidual",
    "Reading",
    "Slot",
    "Store",
    "VelocityHistory",
]
