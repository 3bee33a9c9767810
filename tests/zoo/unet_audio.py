"""Sound: AudioLDM, AudioLDM 2 and MusicLDM denoise a spectrogram's latents, and a vocoder makes the waveform."""

from __future__ import annotations

import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    MusicLDMPipeline,
)
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)

from .unet_parts import BATCH, PROMPTS, case, ddim, kl_vae, loud, short_tokenizer, stirred, t5, unet

CALL = {"prompt": PROMPTS[0], "negative_prompt": "red", "guidance_scale": 3.0, "audio_length_in_s": 0.02}
CLAP_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "projection_dim": 16,
}


def vocoder() -> SpeechT5HifiGan:
    torch.manual_seed(130)
    config = SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=16000,
        upsample_initial_channel=8,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        normalize_before=False,
    )
    made = SpeechT5HifiGan(config).eval()
    for weights in made.parameters():
        if weights.ndim > 2:  # it starts so small that it would be silent
            weights.data.mul_(30.0)
    return made


def clap() -> ClapModel:
    """Text and sound in one space; the sound's half only ranks several waveforms for a prompt."""
    torch.manual_seed(131)
    sound = {
        "spec_size": 8,
        "window_size": 4,
        "num_mel_bins": 8,
        "intermediate_size": 32,
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "projection_dim": 16,
        "patch_size": 2,
        "patch_stride": 2,
        "patch_embed_input_channels": 4,
        "patch_embeds_hidden_size": 16,
    }
    return ClapModel(ClapConfig(text_config=CLAP_TEXT, audio_config=sound, projection_dim=16)).eval()


def spectrogram_vae():
    return kl_vae(in_channels=1, out_channels=1)


def pooled_unet():
    """The whole text is one vector, put beside the time's."""
    return unet(
        132,
        cross_attention_dim=(8, 16),  # without a text it attends to itself
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True,
    )


def audioldm_parts():
    torch.manual_seed(133)
    return {
        "vae": spectrogram_vae(),
        "text_encoder": ClapTextModelWithProjection(ClapTextConfig(**CLAP_TEXT)).eval(),
        "tokenizer": short_tokenizer(),
        "unet": pooled_unet(),
        "scheduler": ddim(),
        "vocoder": vocoder(),
    }


case("AudioLDMPipeline", AudioLDMPipeline, audioldm_parts, {**CALL, "output_type": "np"})


def heard(count: int = 1) -> dict:
    """Texts' vectors: this pipeline's own way to them is older than the transformers it is installed with."""
    made = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(138))
    return {"prompt_embeds": made[0, :count], "negative_prompt_embeds": made[1, :count]}


case(
    "MusicLDMPipeline",
    MusicLDMPipeline,
    lambda: {**audioldm_parts(), "text_encoder": clap(), "feature_extractor": ClapFeatureExtractor()},
    {**heard(), "guidance_scale": 3.0, "audio_length_in_s": 0.02, "output_type": "np"},
    batch=heard(2),
)


def audioldm2_parts():
    """Two texts, and eight states that a GPT-2 goes on with from both."""
    torch.manual_seed(134)
    language = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=64, n_positions=64)).eval()
    language.config.max_new_tokens = 8
    torch.manual_seed(135)
    project = AudioLDM2ProjectionModel(text_encoder_dim=16, text_encoder_1_dim=16, langauge_model_dim=16).eval()
    torch.manual_seed(136)
    denoiser = AudioLDM2UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=([None, 16, 16], [None, 16, 16]),
    )
    return {
        "vae": spectrogram_vae(),
        "text_encoder": clap(),
        "text_encoder_2": t5(137),
        "projection_model": project,
        "language_model": language,
        "tokenizer": short_tokenizer(),
        "tokenizer_2": short_tokenizer(),
        "feature_extractor": ClapFeatureExtractor(),
        "unet": loud(stirred(denoiser, 136)),
        "scheduler": ddim(),
        "vocoder": vocoder(),
    }


case(
    "AudioLDM2Pipeline",
    AudioLDM2Pipeline,
    audioldm2_parts,
    # Only tokenizers of certain classes are given the prompt, all others the transcription.
    {**CALL, "transcription": PROMPTS[0], "max_new_tokens": 8, "output_type": "latent"},
    batch={**BATCH, "transcription": PROMPTS},
)
