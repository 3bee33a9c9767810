"""The discriminator of the detail stage: heads on the frozen teacher's features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..models import Family


class Head(nn.Module):
    """Scores every token of one block's output: [B, tokens, C] -> [B, tokens].

    1x1 convolution to ``width`` channels, a residual one, each with GroupNorm (32 groups over a sample's tokens) and
    LeakyReLU, and a 1x1 convolution to one score.  Over tokens such a convolution is a linear layer.
    """

    def __init__(self, channels: int, width: int = 1024):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(channels, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(32, width), nn.GroupNorm(32, width)])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        h = self._normed(self.first(features.to(self.first.weight.dtype)), 0)
        return self.out(h + self._normed(self.second(h), 1)).squeeze(-1)

    def _normed(self, h: torch.Tensor, number: int) -> torch.Tensor:
        return nn.functional.leaky_relu(self.norms[number](h.transpose(1, 2)).transpose(1, 2))


class Discriminator(nn.Module):
    """One head on the first of every ``stride`` blocks.  ``forward`` takes their features, shallow ones first."""

    def __init__(self, channels: int, blocks: int, *, width: int = 1024, stride: int = 2):
        super().__init__()
        self.numbers = tuple(range(0, blocks, stride))
        self.heads = nn.ModuleList([Head(channels, width) for _ in self.numbers])

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        return [head(f) for head, f in zip(self.heads, features, strict=True)]


@contextmanager
def tapped(model: nn.Module, family: Family, numbers: tuple[int, ...]) -> Iterator[Callable[[], list[torch.Tensor]]]:
    """Within the context, calls of ``model`` record the hidden states after the blocks ``numbers``."""
    taken: list[torch.Tensor] = []
    part = {"hidden_encoder": 0, "encoder_hidden": 1}.get(family.returns)

    def keep(module: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
        taken.append(output if part is None else output[part])

    def take() -> list[torch.Tensor]:
        found, taken[:] = list(taken), []
        return found

    blocks = family.block_list(model)
    hooks = [blocks[n].register_forward_hook(keep) for n in numbers]
    try:
        yield take
    finally:
        for hook in hooks:
            hook.remove()
