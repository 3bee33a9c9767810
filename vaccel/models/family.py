"""What a family says of its transformers: where the blocks are, what a call's tensors mean, how guidance arrives."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from .. import ops
from .arguments import is_sample, is_time, parameters
from .layout import Inputs, Layout, Part, rows_of

#: What denoisers call the text, or whatever they are conditioned by.
CONDITIONS = ("encoder_hidden_states", "cap_feats", "context", "prompt_embeds", "text_bth", "clip_text_pooled",
              "class_labels", "proj_embedding", "c")  # fmt: skip
#: By which names pipelines take their guidance scale.
GUIDANCE = ("true_cfg_scale", "guidance_scale", "cfg_scale", "decoder_guidance_scale", "prior_guidance_scale")


#: The families of this folder's files.
DESCRIBED: list[type[Family]] = []


@dataclasses.dataclass(frozen=True)
class BlockList:
    """One list of blocks, run one after another.

    Args:
        attribute: where the model has it.
        returns: what a block gives: "hidden", or both in a tuple, "hidden_encoder" or "encoder_hidden".
        joined: where text and hidden states are one sequence in these blocks, which comes first: "encoder" or "hidden";
            "" where they are not.
        hidden, encoder: the names of a block's arguments for both, where it is called by name.
        both: whether the residual of the blocks is of both: what goes beside the hidden states is no text but predicted
            itself, as sound is beside video.  Of a model with a single list.
        tokens_first: whether hidden states are [tokens, rows, width] in these blocks, which give them alone.
    """

    attribute: str
    returns: str = "hidden"
    joined: str = ""
    hidden: str = "hidden_states"
    encoder: str = "encoder_hidden_states"
    both: bool = False
    tokens_first: bool = False


class Family:
    """One model family; subclasses override what differs.  Stateless: one object serves every pipeline.

    As it is, without blocks, it stands for any model: nothing is known of it but what its calls show.
    """

    name: ClassVar[str] = "generic"
    #: Class names of the transformers it describes.
    transformers: ClassVar[tuple[str, ...]] = ()
    #: The lists of blocks, in the order in which the forward runs them; none for a model that is seen from outside.
    blocks: ClassVar[tuple[BlockList, ...]] = ()
    #: Whether the lists take turns, a block of each, instead of following one another.
    interleaved: ClassVar[bool] = False
    #: Whether the forward looks blocks up by number; where it only loops over them, a view may hold fewer.
    indexes_blocks: ClassVar[bool] = True
    #: Whether the forward adds something to the hidden states between the blocks of its single list.
    between: ClassVar[bool] = False
    #: What the forward reads of its blocks beside calling them.
    block_attributes: ClassVar[tuple[str, ...]] = ()
    #: The argument that is denoised; "" where the first answer is to tell.
    sample: ClassVar[str] = ""
    #: The argument that tells branches apart: what a call is conditioned by; "" for the first of ``CONDITIONS``.
    condition: ClassVar[str] = ""
    #: Whether guidance comes as one batched call, rows [unconditional; conditional], instead of two calls.  None where
    #: the first call is to tell: both halves of its rows are then the same latents.
    batched_guidance: ClassVar[bool | None] = None
    #: Whether the pipelines convert a step's timestep before a call gets it, for all rows alike; ``modulations`` then
    #: converts the scheduler's as they do.
    converts_timesteps: ClassVar[bool] = False
    #: Arguments with one row a sample; None for every tensor with as many rows as there are.
    row_arguments: ClassVar[tuple[str, ...] | None] = None
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
    fresh: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.transformers and cls.__module__.startswith(__package__):
            DESCRIBED.append(cls)

    @property
    def described(self) -> bool:
        """Whether the inside of the model is known."""
        return bool(self.blocks)

    @property
    def returns(self) -> str:
        """What the first list's blocks return."""
        return self.blocks[0].returns if self.blocks else ""

    @property
    def carries_text(self) -> bool:
        """Whether text goes through blocks beside the hidden states."""
        return any(one.returns != "hidden" or one.joined for one in self.blocks)

    def places(self, model: nn.Module) -> list[tuple[BlockList, int]]:
        """(list, place in it) of every block, in the order in which they are run."""
        lists = [[(one, n) for n in range(len(getattr(model, one.attribute)))] for one in self.blocks]
        if self.interleaved:
            return [place for group in zip(*lists, strict=True) for place in group]
        return [place for one in lists for place in one]

    def block_list(self, model: nn.Module) -> list[nn.Module]:
        """The blocks of all lists, in the order in which they are run."""
        return [getattr(model, one.attribute)[n] for one, n in self.places(model)]

    def check(self, model: nn.Module) -> None:
        """Raises ``ValueError`` for a model that this does not describe."""
        names = {kind.__name__ for kind in type(model).__mro__}
        if self.transformers and not names & set(self.transformers):
            raise ValueError(
                f"family {self.name!r} describes {', '.join(self.transformers)}, and this is a {type(model).__name__}"
            )
        for one in self.blocks:
            if not isinstance(getattr(model, one.attribute, None), nn.ModuleList):
                raise ValueError(
                    f"family {self.name!r} does not describe this {type(model).__name__}: it has no list of blocks "
                    f"{one.attribute!r}"
                )

    def bind(self, model: nn.Module, args: tuple, kwargs: Inputs) -> Inputs:
        """A call's arguments by name, however they were passed."""
        if not args:
            return kwargs
        return dict(zip(parameters(type(model)), args, strict=False)) | kwargs

    def condition_of(self, kind: type[nn.Module]) -> str:
        """The argument that tells branches apart, of models of this class."""
        if self.condition:
            return self.condition
        takes = parameters(kind)
        known = next((name for name in CONDITIONS if name in takes), None)
        return known or next((n for n in takes if not is_sample(n) and not is_time(n)), CONDITIONS[0])

    def layout(self, model: nn.Module) -> Layout | None:
        """How the model's answers lie; None where the first answer is to tell."""
        if type(self).latents is not Family.latents or type(self).prediction is not Family.prediction:
            return _Described(self, model)
        return None

    @staticmethod
    def static(*parts: Part, kind: str = "single") -> Layout:
        """A layout that a family knows without looking at an answer."""
        made = Layout(parts, kind)
        made.learnt = False
        return made

    def latents(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        """The noisy part of the call's input, in the shape of ``prediction``.

        Raises ``ValueError`` where only an answer can tell.
        """
        known = self.layout(model)
        if known is None or isinstance(known, _Described):
            raise ValueError(f"which input of a {type(model).__name__} is noisy shows only once it has answered")
        return known.x(inputs)

    def prediction(self, model: nn.Module, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """The part of the call's output that is about ``latents``."""
        return output

    def encode(self, pipe: Any, clip: torch.Tensor) -> torch.Tensor:
        """Clean latents of clips [B, frames, H, W, 3] in [0, 1], fp32: shaped and normalised as ``latents``.

        The mode of what the VAE says, never a draw.  Raises ``ValueError`` for a family that does not say how.
        """
        raise ValueError(f"family {self.name!r} does not say how clips are encoded: no experts can be distilled for it")

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        """A call's ``timestep`` for the scheduler's timesteps t [B]."""
        return t

    def width(self, model: nn.Module) -> int:
        """Channels of the hidden states between blocks."""
        return model.config.num_attention_heads * model.config.attention_head_dim

    def encoder_shape(self, model: nn.Module, inputs: Inputs) -> tuple[int, ...] | None:
        """Shape of the text that blocks carry along, [rows, tokens, width], or what else changes with its length.

        None where they carry none, or where ``inputs`` are only planned and its length is not known in advance.
        """
        text = inputs.get(self.condition or CONDITIONS[0])
        if not self.carries_text or not isinstance(text, torch.Tensor):
            return None
        return len(text), text.shape[1], self.width(model)

    def modulation(self, model: nn.Module, inputs: Inputs, projected: bool) -> torch.Tensor:
        """The embedding of the timestep, [rows, ...]; ``projected`` as the blocks' modulation sees it.

        Raises ``ValueError`` where the family does not say.
        """
        raise ValueError(
            f"nothing is known of the embedding of the timestep in a {type(model).__name__}: use a method that does "
            "not watch it, such as EasyCache, Schedule or Forecast"
        )

    def modulations(
        self, model: nn.Module, inputs: Inputs, timesteps: torch.Tensor, projected: bool
    ) -> torch.Tensor | None:
        """``modulation`` at every one of the scheduler's ``timesteps`` [T], in one batch.

        None where it needs more than a timestep.
        """
        return self.modulation(model, {**inputs, "timestep": timesteps}, projected)

    def entering(self, hidden: torch.Tensor, arguments: Mapping[str, Any]) -> torch.Tensor:
        """Of what enters the first block, called with ``arguments``, that which the residual is of."""
        return hidden

    def leaving(self, model: nn.Module, hidden: torch.Tensor, arriving: torch.Tensor, joined: str) -> torch.Tensor:
        """Hidden states as the last block gives them, of those as the first one gets them.

        Args:
            hidden: [rows, tokens, width], as they enter the first list.
            arriving: what enters the last block where nothing is computed; its text is nobody's any more.
            joined: which comes first where the last list has text and hidden states in one sequence, or "".
        """
        if not joined:
            return hidden
        text = arriving.shape[1] - hidden.shape[1]
        first = joined == "encoder"
        return torch.cat([arriving[:, :text], hidden] if first else [hidden, arriving[:, -text:]], dim=1)

    def entered(self, model: nn.Module, hidden: torch.Tensor, like: torch.Tensor, joined: str) -> torch.Tensor:
        """The reverse: of what the last block gives, the part that is ``like`` what entered the first one."""
        if not joined:
            return hidden
        return hidden[:, -like.shape[1] :] if joined == "encoder" else hidden[:, : like.shape[1]]

    def reusing_inputs(self, model: nn.Module, inputs: Inputs) -> Inputs:
        """The call's arguments for a forward in which the residual of all blocks stands in for them."""
        return inputs

    def skipped(self, model: nn.Module, inputs: Inputs) -> tuple[tuple[int, ...], Inputs]:
        """Numbers of the blocks that a call asks to leave out, and its arguments without that."""
        return (), inputs

    def small_inputs(self, small: nn.Module, inputs: Inputs) -> Inputs:
        """The large model's arguments as the small model takes them."""
        return inputs

    def check_small(self, large: nn.Module, small: nn.Module) -> None:
        """Raises ``ValueError`` when a small model cannot take the large one's latents and conditions."""
        for name in self.shared_config:
            ours, theirs = (getattr(getattr(m, "config", None), name, None) for m in (large, small))
            if ours != theirs:
                raise ValueError(
                    f"the small model does not fit: its {name} is {theirs}, the large model's is {ours}; "
                    "both must share latents and text embeddings"
                )

    def rows(self, inputs: Inputs, rows: slice | list[int], layout: Layout | None = None) -> Inputs:
        """The same call for some of its rows; what all of them share stays as it is."""
        if self.row_arguments is None:
            return rows_of(inputs, rows, layout)
        count = len(inputs["hidden_states"])
        given = {k: inputs.get(k) for k in self.row_arguments}
        own = {k: t[rows] for k, t in given.items() if isinstance(t, torch.Tensor) and t.ndim and len(t) == count}
        return {**inputs, **own}

    def guidance(self, pipe: Any, stage: int, arguments: Mapping[str, Any]) -> float:
        """The guidance scale w of the pipeline's current step.

        Args:
            stage: counts the pipeline's transformers.
            arguments: of the pipeline's running call, by name.
        """
        # Where a pipeline has true guidance, its other scale is a number that the model is given.
        said = arguments.get(GUIDANCE[0]), getattr(pipe, "_guidance_scale", None)
        for value in (*said, *(arguments.get(name) for name in GUIDANCE[1:])):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return float(value)
        return 1.0

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


def computing_dtype(module: nn.Module, inputs: Inputs) -> torch.dtype:
    """The dtype that a module is to be called in: its weights', where they are kept as they are computed with.

    Quantised weights, or those stored in eight bits, are computed with in the dtype of the call.
    """
    stored = next((p.dtype for p in module.parameters()), None)
    plain = stored is not None and stored.is_floating_point and stored.itemsize > 1
    return stored if plain else inputs["hidden_states"].dtype


class _Described(Layout):
    """Of a family that says itself which parts of a call are noisy."""

    learnt = False

    def __init__(self, family: Family, model: nn.Module):
        super().__init__([Part(0, family.sample or "hidden_states")])
        self.x = functools.partial(family.latents, model)
        self.cuts = type(family).prediction is not Family.prediction
        self._family, self._model = family, model

    def pack(self, answer: Any, inputs: Inputs) -> torch.Tensor:
        output = super().pack(answer, inputs)
        return self._family.prediction(self._model, inputs, output) if self.cuts else output
