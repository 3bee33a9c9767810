"""The command line: ``vaccel generate | compare | calibrate | distill | doctor``."""

from .main import app

__all__ = ["app"]
