"""accumulate_and_test(E, c) = E + offset + factor c, and whether any sample is past the threshold."""

import torch


def accumulate_and_test(
    error: torch.Tensor, change: torch.Tensor, offset: float, factor: float, threshold: float
) -> tuple[torch.Tensor, bool]:
    """[B], [B] -> [B] in fp64, flag; NaN is past any threshold."""
    error = error.double() + offset + factor * change.double()
    return error, not bool((error <= threshold).all())
