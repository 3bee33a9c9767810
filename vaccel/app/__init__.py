"""A page in the browser: the full model's clip beside a fast one, at a speed that a slider sets.

``Studio`` is what stands behind it: one pipeline, one request at a time, the full model's clips kept.  It knows of no
browser.  ``shown`` writes a result as HTML, ``page`` alone needs Gradio, and ``vaccel app`` opens it.
"""

from .jobs import Job, Made, Request
from .sampling import Cancelled
from .studio import Studio, studio_of

__all__ = ["Cancelled", "Job", "Made", "Request", "Studio", "studio_of"]
