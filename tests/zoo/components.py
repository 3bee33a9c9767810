"""Components that several pipelines share: tokenizers, text encoders, VAEs.  Each is seeded and made anew."""

from __future__ import annotations


def quiet(pipe):
    """The pipeline without a progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe
