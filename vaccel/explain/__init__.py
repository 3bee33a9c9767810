"""A run's trace in words: what each step was, what it was decided by, what was predicted and what was measured.

``explanation`` needs the trace alone, ``plot.svg`` draws it with Matplotlib; ``vaccel explain`` shows both.
"""

from .explanation import Explanation, Judged, Share, Watched, explanation

__all__ = ["Explanation", "Judged", "Share", "Watched", "explanation"]
