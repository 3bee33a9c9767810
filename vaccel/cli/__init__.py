"""The command line: ``vaccel generate | compare | explain | calibrate | distill | doctor``."""

from .app import app

__all__ = ["app"]
