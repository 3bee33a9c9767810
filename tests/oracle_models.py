"""How the oracle runs a transformer: as diffusers does, or with what the block stack adds taken from elsewhere.

Written from the models' descriptions, nothing shared with vaccel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import CogVideoXTransformer3DModel, QwenImageTransformer2DModel
from torch import Tensor, nn

if TYPE_CHECKING:
    from oracle import Task

Branches = dict[str, Tensor]
Text = Tensor | tuple[Tensor, Tensor | None]  # prompt embeddings; Qwen-Image's with the mask of their padding, if any


def is_cog(model: nn.Module) -> bool:
    return isinstance(model, CogVideoXTransformer3DModel)


def is_qwen(model: nn.Module) -> bool:
    return isinstance(model, QwenImageTransformer2DModel)


def rotary_for(model: nn.Module, task: Task) -> tuple[Tensor, Tensor] | None:
    """A model with added positions was never meant to see rotated ones, whatever its pipeline's other model needs."""
    return task.rotary if model.config.use_rotary_positional_embeddings else None


def forward(model: nn.Module, task: Task, x: Tensor, t: Tensor, text: Text) -> Tensor:
    """The transformer as diffusers runs it."""
    if is_qwen(model):
        inputs = {"hidden_states": x, "timestep": t.expand(x.shape[0]) / 1000, "img_shapes": [[task.image]] * len(x)}
        inputs["encoder_hidden_states"], inputs["encoder_hidden_states_mask"] = text
        return model(**inputs, return_dict=False)[0]
    inputs = {"hidden_states": x, "timestep": t.expand(x.shape[0]), "encoder_hidden_states": text}
    if is_cog(model):
        inputs["image_rotary_emb"] = rotary_for(model, task)
    return model(**inputs, return_dict=False)[0]


def evaluate(model: nn.Module, task: Task, x: Tensor, t: Tensor, names: Sequence[str]) -> Branches:
    """The model's output for each of the branches, in one forward or one each."""
    if task.batched:
        text = torch.cat([task.text(name) for name in names])
        out = forward(model, task, torch.cat([x] * len(names)), t, text)
        return dict(zip(names, out.chunk(len(names)), strict=True))
    return {name: forward(model, task, x, t, task.text(name)) for name in names}


def wan_forward(model: nn.Module, x: Tensor, t: Tensor, text: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Wan's forward with the blocks replaced by adding ``residual`` where one is given; also returns the residual."""
    batch, _, frames, height, width = x.shape
    p_t, p_h, p_w = model.config.patch_size
    grid = (frames // p_t, height // p_h, width // p_w)
    rotary = model.rope(x)
    tokens = model.patch_embedding(x).flatten(2).transpose(1, 2)

    temb, modulation, text, _ = model.condition_embedder(t.expand(batch), text, None)
    modulation = modulation.unflatten(1, (6, -1))
    if residual is None:
        hidden = tokens
        for block in model.blocks:
            hidden = block(hidden, text, modulation, rotary)
        residual = hidden - tokens
    else:
        hidden = tokens + residual

    shift, scale = (model.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
    hidden = model.proj_out(model.norm_out(hidden) * (1 + scale) + shift)
    hidden = hidden.reshape(batch, *grid, p_t, p_h, p_w, -1)  # b f h w pt ph pw c
    return hidden.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, -1, frames, height, width), residual


def cog_forward(
    model: nn.Module, x: Tensor, t: Tensor, text: Tensor, rotary: Any, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """CogVideoX's forward with the blocks replaced by adding ``residual`` where one is given; also returns it."""
    batch, frames, _, height, width = x.shape
    emb = model.time_embedding(model.time_proj(t.expand(batch)).to(x.dtype))
    sequence = model.patch_embed(text, x)
    words, tokens = sequence[:, : text.shape[1]], sequence[:, text.shape[1] :]
    if residual is None:
        hidden = tokens
        for block in model.transformer_blocks:
            hidden, words = block(hidden_states=hidden, encoder_hidden_states=words, temb=emb, image_rotary_emb=rotary)
        residual = hidden - tokens
    else:
        hidden = tokens + residual

    hidden = model.proj_out(model.norm_out(model.norm_final(hidden), temb=emb))
    p = model.config.patch_size
    hidden = hidden.reshape(batch, frames, height // p, width // p, -1, p, p)  # b f h w c ph pw
    return hidden.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, frames, -1, height, width), residual


def qwen_forward(
    model: nn.Module, x: Tensor, t: Tensor, text: Text, image: tuple[int, int, int], residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Qwen-Image's forward with the blocks replaced by adding ``residual`` where one is given; also returns it."""
    words, mask = text
    tokens = model.img_in(x)
    words = model.txt_in(model.txt_norm(words))
    emb = model.time_text_embed(t.expand(x.shape[0]) / 1000, tokens)
    rotary = model.pos_embed([[image]], max_txt_seq_len=words.shape[1], device=x.device)
    if residual is None:
        hidden, mask = tokens, None if mask is None else mask.bool()
        for block in model.transformer_blocks:
            words, hidden = block(hidden, words, mask, emb, rotary)
        residual = hidden - tokens
    else:
        hidden = tokens + residual
    return model.proj_out(model.norm_out(hidden, emb)), residual


def stack_forward(
    model: nn.Module, task: Task, x: Tensor, t: Tensor, text: Text, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if is_qwen(model):
        return qwen_forward(model, x, t, text, task.image, residual)
    if is_cog(model):
        return cog_forward(model, x, t, text, rotary_for(model, task), residual)
    return wan_forward(model, x, t, text, residual)


def evaluate_stack(
    model: nn.Module, task: Task, x: Tensor, t: Tensor, residuals: Branches | None
) -> tuple[Branches, Branches]:
    """Every branch's output and block-stack residual; given residuals are used in place of the blocks."""
    names = task.names
    if task.batched:
        residual = None if residuals is None else torch.cat([residuals[name] for name in names])
        text = torch.cat([task.text(name) for name in names])
        out, residual = stack_forward(model, task, torch.cat([x] * len(names)), t, text, residual)
        return (
            dict(zip(names, out.chunk(len(names)), strict=True)),
            dict(zip(names, residual.chunk(len(names)), strict=True)),
        )
    outs, kept = {}, {}
    for name in names:
        known = None if residuals is None else residuals[name]
        outs[name], kept[name] = stack_forward(model, task, x, t, task.text(name), known)
    return outs, kept


def timestep_embedding(model: nn.Module, t: Tensor, rows: int, *, projected: bool) -> Tensor:
    """What TeaCache watches, one row per sample."""
    if is_cog(model):
        return model.time_embedding(model.time_proj(t.expand(rows)))
    embedder = model.condition_embedder
    embedding = embedder.time_embedder(embedder.timesteps_proj(t.expand(rows)))
    return embedder.time_proj(embedder.act_fn(embedding)) if projected else embedding
