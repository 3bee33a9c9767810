"""What users set on a pipeline beside vaccel, each before, after and between accelerated runs.

``base.py`` says what a setting is, ``subjects.py`` has the pipelines, ``oracles.py`` what is right of each method by
loops that know nothing of vaccel, ``runner.py`` compares.  One file for every group of settings registers its own.
"""

from .base import SETTINGS, Setting, load_all

__all__ = ["SETTINGS", "Setting", "load_all"]
