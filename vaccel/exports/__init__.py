"""What was calibrated here, in the form that other hosts take; one file a host."""

from .cache_dit import cache_dit
from .sglang import sglang

__all__ = ["cache_dit", "sglang"]
