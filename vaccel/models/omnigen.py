"""OmniGen: a language model that reads words, pictures and latents as one sequence."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Inputs
from .layout import Layout
from .picture import Picture


class OmniGen(Picture):
    """``OmniGenTransformer2DModel``: latents [B, C, H, W]; the words and a token of the timestep go before them.

    The rows of its guidance are [conditional; unconditional], and those of a third branch where it has pictures.
    """

    name = "omnigen"
    transformers = ("OmniGenTransformer2DModel",)
    blocks = (BlockList("layers", joined="encoder"),)
    condition = "input_ids"
    indexes_blocks = False
    shared_config = ("in_channels", "vocab_size")
    fresh = ("time_token", "t_embedder", "norm_out", "proj_out")

    def answered(self, model: nn.Module) -> int:
        return model.config.in_channels

    def width(self, model: nn.Module) -> int:
        return model.config.hidden_size

    def rows(self, inputs: Inputs, rows: slice | list[int], layout: Layout | None = None) -> Inputs:
        chosen = list(range(len(inputs["hidden_states"])))
        chosen = chosen[rows] if isinstance(rows, slice) else [chosen[row] for row in rows]
        of, given = {}, iter(inputs["input_img_latents"] or ())
        for row, places in (inputs["input_image_sizes"] or {}).items():  # pictures follow one another, row by row
            of[row] = places, [next(given) for _ in places]
        kept = {new: of[old] for new, old in enumerate(chosen) if old in of}
        return {
            **super().rows(inputs, rows, layout),
            "input_ids": inputs["input_ids"][rows],  # unlike positions, which the model takes of the first row for all
            "input_img_latents": [picture for _, pictures in kept.values() for picture in pictures],
            "input_image_sizes": {row: places for row, (places, _) in kept.items()},
        }

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return model.t_embedder(model.time_proj(inputs["timestep"]).type_as(inputs["hidden_states"]))

    def guided(
        self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().guided(uncond, cond, scale, out)  # the rows are the other way round
