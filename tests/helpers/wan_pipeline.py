"""A whole WanPipeline with random weights, small enough for two CPU cores."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import nn

from rainfusion_trt.demo.components import byte_tokenizer, tiny_text_encoder


def tiny_pipeline(transformer: nn.Module, **options) -> WanPipeline:
    """Around `transformer`; the VAE is the one its number of channels belongs to."""
    channels = transformer.config.in_channels
    kind = {}
    if channels == 48:  # Wan 2.2: 16 pixels a latent
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
    pipe = WanPipeline(
        tokenizer=byte_tokenizer(512),
        text_encoder=tiny_text_encoder(transformer.config.text_dim),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),  # timesteps with fractions
        transformer=transformer,
        **options,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
