"""Kandinsky 5 and 6: channels last, two calls for guidance; videos of Kandinsky 6 have sound."""

from __future__ import annotations

import torch
from torch import nn

from .family import BlockList, Family, Inputs
from .layout import Layout, Part


class Kandinsky5(Family):
    """``Kandinsky5Transformer3DModel``: latents [B, F, H, W, C], given frames and their mask behind the channels."""

    name = "kandinsky5"
    transformers = ("Kandinsky5Transformer3DModel",)
    blocks = (BlockList("visual_transformer_blocks"),)
    indexes_blocks = False
    batched_guidance = False
    channel_axis = -1
    frame_axis = 1
    spatial = False
    shared_config = ("in_visual_dim", "out_visual_dim", "in_text_dim", "in_text_dim2", "visual_cond")
    fresh = ("time_embeddings", "out_layer")

    def layout(self, model: nn.Module) -> Layout | None:
        return self.static(Part(0, "hidden_states", axis=4, size=model.config.out_visual_dim))

    def width(self, model: nn.Module) -> int:
        return model.config.model_dim

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return model.time_embeddings(inputs["timestep"])


class Kandinsky6(Family):
    """``Kandinsky6Transformer3DModel``: latents [B, F, H, W, C] and [B, frames, C] of the sound, both predicted.

    The first frame of a given picture lies at the end.
    """

    name = "kandinsky6"
    transformers = ("Kandinsky6Transformer3DModel",)
    blocks = (BlockList("visual_transformer_blocks", "hidden_encoder", hidden="vis", encoder="aud", both=True),)
    indexes_blocks = False
    batched_guidance = False
    channel_axis = -1
    spatial = False
    shared_config = ("in_visual_dim", "out_visual_dim", "in_audio_dim", "out_audio_dim", "in_text_dim", "in_text_dim2")

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        sound = inputs.get("audio_hidden_states")  # goes through the blocks where elsewhere the text does
        return None if sound is None else tuple(sound.shape)

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        return model.video_time_embeddings(inputs["timestep"])
