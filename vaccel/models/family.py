"""What a family says of its transformers: where the blocks are, what a call's tensors mean, how guidance arrives."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import nn

from .. import ops

Inputs = dict[str, Any]  # a transformer call's arguments, by name


class Family:
    """One model family; subclasses override what differs.  Stateless: one object serves every pipeline."""

    name: ClassVar[str]
    #: Class names of the transformers it describes.
    transformers: ClassVar[tuple[str, ...]]
    #: Attribute that holds the list of blocks.
    blocks: ClassVar[str] = "blocks"
    #: What a block returns: "hidden", or both in a tuple, "hidden_encoder" or "encoder_hidden".
    returns: ClassVar[str] = "hidden"
    #: Whether the forward looks blocks up by number; where it only loops over them, a view may hold fewer.
    indexes_blocks: ClassVar[bool] = True
    #: Whether guidance comes as one batched call, rows [unconditional; conditional], instead of two calls.
    batched_guidance: ClassVar[bool] = False
    #: Whether the pipelines convert a step's timestep before a call gets it, for all rows alike; ``modulations`` then
    #: converts the scheduler's as they do.
    converts_timesteps: ClassVar[bool] = False
    #: Arguments with one row a sample.
    row_arguments: ClassVar[tuple[str, ...]] = ("hidden_states", "encoder_hidden_states", "timestep")
    #: Arguments that are lists with one entry a sample.
    row_lists: ClassVar[tuple[str, ...]] = ()
    #: Axis of ``latents`` that counts frames; None where there is but one.
    frame_axis: ClassVar[int | None] = None
    #: Axis of ``latents`` that counts channels.
    channel_axis: ClassVar[int] = 1
    #: Whether the last two axes of ``latents`` are rows and columns.
    spatial: ClassVar[bool] = True
    #: Configuration a small model must share with the large one, for latents and conditions to fit both.
    shared_config: ClassVar[tuple[str, ...]] = ("in_channels", "out_channels")
    #: Ends of the names of the attention's projections, those that a distilled expert adapts.
    attention_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    #: Modules and root parameters of the timestep's embedding, the output norm and the output projection.
    fresh: ClassVar[tuple[str, ...]]

    def bind(self, model: nn.Module, args: tuple, kwargs: Inputs) -> Inputs:
        """A call's arguments by name, however they were passed."""
        if not args:
            return kwargs
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        return dict(zip(names, args, strict=False)) | kwargs

    def latents(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        """The noisy part of the call's input, in the shape of ``prediction``."""
        raise NotImplementedError

    def prediction(self, model: nn.Module, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """The part of the call's output that is about ``latents``."""
        return output

    def encode(self, pipe: Any, clip: torch.Tensor) -> torch.Tensor:
        """Clean latents of clips [B, frames, H, W, 3] in [0, 1], fp32: shaped and normalised as ``latents``.

        The mode of what the VAE says, never a draw.
        """
        raise NotImplementedError

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        """A call's ``timestep`` for the scheduler's timesteps t [B]."""
        return t

    def width(self, model: nn.Module) -> int:
        """Channels of the hidden states between blocks."""
        return model.config.num_attention_heads * model.config.attention_head_dim

    def latents_shape(self, model: nn.Module, rows: int, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of ``latents`` for so many latent frames, rows and columns."""
        raise NotImplementedError

    def hidden_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...]:
        """Shape of the hidden states between blocks, [rows, tokens, width]."""
        raise NotImplementedError

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        """Shape of the text that blocks carry along, [rows, tokens, width].

        None where they carry none, or where ``inputs`` are only planned and its length is not known in advance.
        """
        if self.returns == "hidden" or "encoder_hidden_states" not in inputs:
            return None
        text = inputs["encoder_hidden_states"]
        return len(text), text.shape[1], model.config.num_attention_heads * model.config.attention_head_dim

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        """The embedding of the timestep, [rows, ...]; ``projected`` as the blocks' modulation sees it."""
        raise NotImplementedError

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        """``modulation`` at every one of the scheduler's ``timesteps`` [T], in one batch.

        None where it needs more than a timestep.
        """
        return self.modulation(model, {**inputs, "timestep": timesteps}, projected)

    def reusing_inputs(self, model: nn.Module, inputs: Inputs) -> Inputs:
        """The call's arguments for a forward in which the residual of all blocks stands in for them."""
        return inputs

    def small_inputs(self, small: nn.Module, inputs: Inputs) -> Inputs:
        """The large model's arguments as the small model takes them."""
        return inputs

    def check_small(self, large: nn.Module, small: nn.Module) -> None:
        """Raises ``ValueError`` when a small model cannot take the large one's latents and conditions."""
        for name in self.shared_config:
            ours, theirs = getattr(large.config, name, None), getattr(small.config, name, None)
            if ours != theirs:
                raise ValueError(
                    f"the small model does not fit: its {name} is {theirs}, the large model's is {ours}; "
                    "both must share latents and text embeddings"
                )

    def rows(self, inputs: Inputs, rows: slice | list[int]) -> Inputs:
        """The same call for some of its rows; what all of them share stays as it is."""
        count = len(inputs["hidden_states"])
        given = {k: inputs.get(k) for k in self.row_arguments}
        own = {k: t[rows] for k, t in given.items() if isinstance(t, torch.Tensor) and t.ndim and len(t) == count}
        return {**inputs, **own}

    def guidance(self, pipe: Any, stage: int) -> float:
        """The guidance scale w of the pipeline's current step; ``stage`` counts its transformers."""
        return float(pipe.guidance_scale)

    def guided(
        self, cond: torch.Tensor, uncond: torch.Tensor, scale: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The prediction the pipelines make of both branches' [B, ...]; in ``out``, which is neither, if given."""
        return ops.cfg_combine(cond, uncond, scale, out=out)

    @staticmethod
    @torch.no_grad()
    def _modes(pipe: Any, clip: torch.Tensor) -> torch.Tensor:
        """What the VAE says of clips [B, frames, H, W, 3] in [0, 1]: [B, C, f, h, w] in fp32, not normalised yet."""
        video = (clip.to(pipe._execution_device) * 2 - 1).permute(0, 4, 1, 2, 3).to(pipe.vae.dtype).contiguous()
        # A clip at a time, as the pipelines do: no row's bits depend on the others.
        return torch.cat([pipe.vae.encode(v[None]).latent_dist.mode() for v in video]).float()

    @classmethod
    def _normalised(cls, pipe: Any, clip: torch.Tensor) -> torch.Tensor:
        """``_modes`` less the VAE's ``latents_mean``, over its ``latents_std``; rounded as the pipelines round."""
        latents, config = cls._modes(pipe, clip), pipe.vae.config
        mean, std = (latents.new_tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return (latents - mean) * (1.0 / std)
