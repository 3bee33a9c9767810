"""Tiny random components for every denoising pipeline of diffusers that can be built offline.

A case builds one pipeline of genuine classes: the denoiser, the scheduler and the pipeline's ``__call__`` are
diffusers' own.  ``CASES`` has them by name; ``make conformance`` runs them all.
"""

from .base import CASES, Case, generate, load_all

__all__ = ["CASES", "Case", "generate", "load_all"]
