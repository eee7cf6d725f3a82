"""Whole Wan pipelines with random weights, small enough for two CPU cores."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import nn

from rainfusion_trt.demo.components import byte_tokenizer, tiny_text_encoder


def tiny_pipeline(transformer: nn.Module, kind: type = WanPipeline, **options: Any) -> Any:
    """Around `transformer`; the VAE is the one its number of channels belongs to."""
    config = transformer.config
    if config.image_dim is not None:
        options.update(image_parts(config.image_dim))
    pipe = kind(
        tokenizer=byte_tokenizer(512),
        text_encoder=tiny_text_encoder(config.text_dim),
        vae=tiny_vae(config.out_channels),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),  # timesteps with fractions
        transformer=transformer,
        **options,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_vae(channels: int) -> nn.Module:
    """A Wan VAE of 8 pixels a latent; of 16 for the 48 channels of Wan 2.2."""
    kind = {}
    if channels == 48:
        kind = {"in_channels": 12, "out_channels": 12, "is_residual": True, "patch_size": 2}
        kind.update(scale_factor_spatial=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLWan(
            base_dim=3,
            z_dim=channels,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * channels,
            latents_std=[1.0] * channels,
            **kind,
        )
    return vae.eval()


def image_parts(width: int) -> dict[str, Any]:
    """A CLIP of 257 tokens, as the real one has, and what prepares its images."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=14,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = CLIPVisionModel(config).eval()
    return {"image_encoder": encoder, "image_processor": CLIPImageProcessor()}
