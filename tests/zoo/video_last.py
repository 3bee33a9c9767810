"""Kandinsky 6, SANA-WM, and LTX-2's generator of keyframes."""

from __future__ import annotations

import torch
from diffusers import (
    Kandinsky6TI2VAPipeline,
    Kandinsky6Transformer3DModel,
    LTX2DFRPipeline,
    MMAudioVAE,
    MMAudioVocoder,
    SanaWMPipeline,
    SanaWMTransformer3DModel,
)
from tokenizers import processors

from . import image_parts as made
from . import image_qwen, video_hunyuan, video_ltx2
from . import video_parts as parts
from .base import Case


class Reader(made.Processor):
    """Reads texts only.

    Two words more at the beginning: the pipeline cuts off 129, and its template has 127 before the prompt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<pad> <pad> $A </s>", special_tokens=[("</s>", 1), ("<pad>", 0)]
        )


def kandinsky():
    """Video and sound, each with its own branch."""
    torch.manual_seed(0)
    transformer = Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=32,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=2,
        num_visual_blocks=4,
        axes_dims=(4, 4, 8),
        in_audio_dim=4,
        out_audio_dim=4,
        visual_token_type_num_embeddings=2,
    )
    torch.manual_seed(1)
    audio_vae = MMAudioVAE(
        mel_bins=16, latent_channels=4, hidden_channels=32, channel_multipliers=(1, 1), layers_per_block=1
    ).eval()
    torch.manual_seed(2)
    vocoder = MMAudioVocoder(
        num_mels=16,
        upsample_initial_channel=16,
        upsample_rates=(2, 2),
        upsample_kernel_sizes=(4, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3, 5),),
    ).eval()
    pipe = Kandinsky6TI2VAPipeline(
        transformer=made.stirred(transformer),
        vae=video_hunyuan.vae(),
        text_encoder=image_qwen.seeing_text(),
        tokenizer=Reader(),
        text_encoder_2=made.clip_text(width=16),
        tokenizer_2=made.tokenizer(77),
        scheduler=made.flow(5.0),
        audio_vae=audio_vae,
        vocoder=vocoder,
    )
    return made.quiet(pipe)


def sana_wm():
    torch.manual_seed(0)
    transformer = SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=4,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        chunk_plucker_channels=24,
        chunk_plucker_post_attn_blocks=4,
        caption_channels=16,
        mixed_precision="no",
    )
    pipe = SanaWMPipeline(
        transformer=made.stirred(transformer),
        vae=video_ltx2.vae(),
        text_encoder=made.gemma2_text(),
        tokenizer=made.tokenizer(64),
        scheduler=made.flow(8.0),
    )
    return made.quiet(pipe)


def dfr():
    """Distilled: no guidance, noise levels of its own."""
    transformer = video_ltx2.newer(use_keyframes_abs_pos_embedding=True)
    return made.quiet(LTX2DFRPipeline(**video_ltx2.components(transformer=transformer, scheduler=made.flow(1.0))))


KANDINSKY = {**parts.TEXT, **parts.SIZE, "guidance_scale": 5.0, "max_sequence_length": 16}

Case(
    "Kandinsky6TI2VAPipeline",
    build=kandinsky,
    call=lambda: KANDINSKY,
    guidance=parts.OFF,
    batch=parts.BATCH,
)
Case(
    "Kandinsky6TI2VAPipeline-image",
    build=kandinsky,
    call=lambda: {**KANDINSKY, "image": made.picture()},
    guidance=parts.OFF,
)
Case(
    "SanaWMPipeline",
    build=sana_wm,
    call=lambda: {
        **parts.TEXT,
        "image": made.picture(),
        "action": "w-4,jw-4",
        "intrinsics": [32.0, 32.0, 16.0, 16.0],
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "guidance_scale": 5.0,
        "max_sequence_length": 16,
    },
    guidance=parts.OFF,
)
Case(
    "LTX2DFRPipeline",
    build=dfr,
    call=lambda: {
        **parts.SIZE,
        "prompt": made.PROMPT,
        "num_frames": 17,
        "max_sequence_length": 16,
        "output_type": "latent",
    },
    steps=None,
    batch={"prompt": made.TWO},
)
