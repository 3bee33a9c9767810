"""Many clips: one after another, each once, with a manifest of what was made and how."""

from .making import Made, Making, make_all
from .manifest import Job, Manifest, alone, header_of, jobs_of

__all__ = ["Job", "Made", "Making", "Manifest", "alone", "header_of", "jobs_of", "make_all"]
