"""Qwen-Image: packed latents, two calls for guidance, whose norm is then that of the conditional branch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import nn

from .family import BlockList, Family, Inputs


class QwenImage(Family):
    """``QwenImageTransformer2DModel``: latents packed two by two, [B, tokens, C].

    Text to image, image to image, inpainting, ControlNet; Edit, Edit-Plus and Layered, whose condition tokens follow
    the noisy ones: ``img_shapes`` tells how many are noisy, and the output is cut to those as their pipelines cut it.
    Layered leaves the norms out of its guidance unless ``cfg_normalize`` is set; ``guided`` always has them, so a
    method that watches guided predictions sees other ones there.
    """

    name = "qwen-image"
    transformers = ("QwenImageTransformer2DModel",)
    channel_axis = -1
    spatial = False
    blocks = (BlockList("transformer_blocks", "encoder_hidden"),)
    batched_guidance = False
    indexes_blocks = False
    converts_timesteps = True
    row_arguments = (
        "hidden_states",
        "encoder_hidden_states",
        "encoder_hidden_states_mask",
        "timestep",
        "guidance",
        "additional_t_cond",
    )
    row_lists = ("img_shapes",)
    fresh = ("time_text_embed", "norm_out", "proj_out")
    shared_config = ("in_channels", "out_channels", "patch_size", "joint_attention_dim", "use_layer3d_rope")

    def latents(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        return self.prediction(model, inputs, inputs["hidden_states"])

    def prediction(self, model: nn.Module, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        images = inputs["img_shapes"][0]  # of the first sample; all have the same
        if isinstance(images[0], int):  # one image, as the ControlNet pipelines pass it
            images = [images]
        # Layers are noisy all but the last; an edited image is the first of its list.
        noisy = images[:-1] if model.config.use_layer3d_rope else images[:1]
        tokens = sum(prod(image) for image in noisy)
        return output if output.shape[1] == tokens else output[:, :tokens]

    def encode(self, pipe: Any, clip: torch.Tensor) -> torch.Tensor:
        if clip.shape[1] != 1:
            raise ValueError(f"Qwen-Image makes images: a clip has 1 frame, not {clip.shape[1]}")
        latents = self._normalised(pipe, clip)[:, :, 0]
        if latents.shape[2] % 2 or latents.shape[3] % 2:
            raise ValueError(f"latents are packed two by two, these are {latents.shape[2]} x {latents.shape[3]}")
        packed = latents.unfold(2, 2, 2).unfold(3, 2, 2)  # [B, C, h / 2, w / 2, 2, 2]
        return packed.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        return t / 1000

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        if projected:
            raise ValueError(
                "Qwen-Image's blocks share no projection of the timestep's embedding: use a method without it, such "
                "as TeaCache(retention=False)"
            )
        x = inputs["hidden_states"]
        return model.time_text_embed(inputs["timestep"].to(x.dtype), x, inputs.get("additional_t_cond"))

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        if inputs.get("additional_t_cond") is not None:
            return None
        # Rounded where the pipelines round: to the latents' dtype first, divided then.
        return super().modulations(model, inputs, self.timestep(timesteps.to(inputs["hidden_states"].dtype)), projected)

    def reusing_inputs(self, model: nn.Module, inputs: Inputs) -> Inputs:
        samples = inputs.get("controlnet_block_samples")
        if samples is None:
            return inputs
        # Added after every block: the residual holds all but the last one's.
        blocks = len(self.block_list(model))
        last = (blocks - 1) // -(-blocks // len(samples))
        return {**inputs, "controlnet_block_samples": samples[last : last + 1]}

    def guidance(self, pipe: Any, stage: int, arguments: Mapping[str, Any]) -> float:
        # The pipelines keep their true_cfg_scale nowhere but in the call that is running.
        if "true_cfg_scale" not in arguments:
            raise ValueError(
                "Qwen-Image's guidance scale is an argument of its pipeline's call, and none is running that has it; "
                "for a loop of your own use vaccel.Denoiser"
            )
        return float(arguments["true_cfg_scale"])

    def guided(
        self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """u + w (c - u), every token's then scaled to the norm of c's; the norms in fp32."""
        combined = super().guided(cond, uncond, scale, out)
        norms = [torch.linalg.vector_norm(v, dim=-1, keepdim=True, dtype=torch.float32) for v in (cond, combined)]
        return combined.mul_(norms[0] / norms[1])
