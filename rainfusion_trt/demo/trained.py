"""The demo model that is trained on real clips: its size and the pipeline around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rainfusion_trt.demo.codec import PatchCodec
from rainfusion_trt.demo.components import byte_tokenizer, tiny_text_encoder
from rainfusion_trt.models.base import VideoSize
from rainfusion_trt.models.transformer import as_transformer

if TYPE_CHECKING:
    from diffusers import (
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

TRAINED_SIZE = VideoSize(frames=49, height=256, width=320)  # 13 x 16 x 20 = 4,160 tokens
TRAINED_FOLDER = Path(__file__).parent / "bigbuckbunny"  # the weights that ship, and their card
TRAINED_PROMPT = "bigbuckbunny"
TRAINED_CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "num_layers": 6,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 48,
    "text_embed_dim": 64,
    "max_text_seq_length": 16,
    "sample_frames": TRAINED_SIZE.frames,
    "sample_height": TRAINED_SIZE.height // 8,
    "sample_width": TRAINED_SIZE.width // 8,
    "use_rotary_positional_embeddings": True,
}


def new_transformer(config: Mapping[str, Any], *, seed: int) -> CogVideoXTransformer3DModel:
    """A CogVideoX transformer to be trained, float32.

    Modulations and the last projection start at zero, so that every block starts as the identity
    (adaLN-Zero, arXiv 2212.09748, section 3.2).
    """
    from diffusers import CogVideoXTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = CogVideoXTransformer3DModel(**config)
    zeroed = [transformer.proj_out, transformer.norm_out.linear]
    for block in transformer.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm2.linear]
    for linear in zeroed:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


def clip_pipeline(transformer: nn.Module, codec: PatchCodec, *, seed: int = 0) -> CogVideoXPipeline:
    """The diffusers pipeline: patch codec for the VAE, clip names for prompts.

    The text encoder is the demo's tiny T5 with seeded random weights, which stay as they are: it
    gives every clip name an embedding of its own, and the empty prompt (of classifier-free
    guidance) another. It is saved with the pipeline.
    """
    from diffusers import CogVideoXPipeline

    config = as_transformer(transformer).config
    return CogVideoXPipeline(
        tokenizer=byte_tokenizer(config.max_text_seq_length),
        text_encoder=tiny_text_encoder(config.text_embed_dim, seed=seed),
        vae=codec,
        transformer=transformer,
        scheduler=clip_scheduler(),
    )


def load_trained(dtype: torch.dtype) -> CogVideoXPipeline:
    """The pipeline that ships with the package, on the CPU; its codec stays in float32."""
    from diffusers import CogVideoXPipeline

    codec = PatchCodec.from_pretrained(TRAINED_FOLDER / "vae")
    return CogVideoXPipeline.from_pretrained(TRAINED_FOLDER, vae=codec, dtype=dtype)


def clip_scheduler() -> CogVideoXDDIMScheduler:
    """The scheduler of training and sampling: v-prediction, no signal at the last timestep."""
    from diffusers import CogVideoXDDIMScheduler

    return CogVideoXDDIMScheduler(
        timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
