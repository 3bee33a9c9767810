"""A path of computed steps as the environment that SGLang's diffusion server reads for its cache-dit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from .cache_dit import cache_dit


def sglang(
    artifact: str | Path, budget: int, *, stands_in: str = "taylorseer", first_blocks: int = 1
) -> dict[str, str]:
    """The variables by which SGLang's own pipelines compute just these steps; `sglang serve` has one path for all.

    SGLang makes cache-dit's mask of the lengths of the stretches that are computed and cached, in turn.  Its diffusers
    backend (``--backend diffusers``) reads the file of ``cache_dit`` instead.  What stands in for skipped steps is
    cache-dit's own, as there.  A model of two transformers takes the same stretches for each of them, counted from its
    own first step, which is another path: it is not for those.

    Args:
        artifact, budget, stands_in, first_blocks: as for ``cache_dit``.

    Raises ``ValueError`` as that does, and where every step would be computed: then there is nothing to say.
    """
    made = cache_dit(artifact, budget, stands_in=stands_in, first_blocks=first_blocks)["cache_config"]
    computed, cached = bins(made["steps_computation_mask"])
    if not cached:
        raise ValueError(f"a budget of {budget} computes every step: there is nothing to cache")
    return {
        "SGLANG_CACHE_DIT_ENABLED": "true",
        "SGLANG_CACHE_DIT_FN": str(first_blocks),
        "SGLANG_CACHE_DIT_BN": "0",
        "SGLANG_CACHE_DIT_WARMUP": "0",
        "SGLANG_CACHE_DIT_MC": "-1",  # the path says how many in a row
        "SGLANG_CACHE_DIT_TAYLORSEER": "true" if stands_in == "taylorseer" else "false",
        "SGLANG_CACHE_DIT_TS_ORDER": "1",
        "SGLANG_CACHE_DIT_SCM_PRESET": "none",
        "SGLANG_CACHE_DIT_SCM_POLICY": "static",
        "SGLANG_CACHE_DIT_SCM_COMPUTE_BINS": ",".join(map(str, computed)),
        "SGLANG_CACHE_DIT_SCM_CACHE_BINS": ",".join(map(str, cached)),
    }


def bins(mask: Sequence[int]) -> tuple[list[int], list[int]]:
    """The lengths of a mask's stretches of computed and of cached steps; it begins with a computed one."""
    stretches = [(value, len(list(run))) for value, run in itertools.groupby(mask)]
    return [n for value, n in stretches if value], [n for value, n in stretches if not value]
