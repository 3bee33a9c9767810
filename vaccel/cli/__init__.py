"""The command line: ``vaccel generate | compare | calibrate | distill | doctor``."""

from .app import app

__all__ = ["app"]
