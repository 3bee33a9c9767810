"""ComfyUI: any model that it loads, accelerated at its output by the wrappers that its model patches offer.

Nothing of ComfyUI is imported: what is used of it comes in by the calls themselves.  The nodes that ComfyUI lists are
in ``integrations/comfyui`` of the repository; they call ``patched`` and ``journal_of``.
"""

from .choosing import AIMS, METHODS, Choice
from .journal import Journal, Record
from .wrappers import KEY, journal_of, patched

__all__ = ["AIMS", "KEY", "METHODS", "Choice", "Journal", "Record", "journal_of", "patched"]
