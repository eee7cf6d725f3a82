"""A whole CogVideoX pipeline with seeded random weights, small enough for two CPU cores."""

from __future__ import annotations

import diffusers
import torch
from diffusers import AutoencoderKLCogVideoX, DiffusionPipeline
from torch import nn

from rainfusion_trt.demo.components import byte_tokenizer, tiny_text_encoder
from rainfusion_trt.models.base import VideoModel, VideoSize

SIZE = VideoSize(frames=25, height=160, width=256)  # 7 x 10 x 16 tokens
_SPATIAL_STAGES = 4  # halves height and width between stages: 8x, as in the released VAE


def tiny_pipeline(
    model: VideoModel,
    transformer: nn.Module | None = None,
    *,
    seed: int = 0,
    size: VideoSize = SIZE,
    pipeline: str | None = None,
) -> DiffusionPipeline:
    """The model's diffusers pipeline with a tiny text encoder and VAE, and a given transformer.

    All weights are random, so the video is noise; everything else is as in the real pipeline.

    Parameters
    ----------
    model : VideoModel
        A CogVideoX: the tiny VAE and the scheduler are of its kind.
    transformer : nn.Module, optional
        By default the model's tiny configuration, float32, seeded.
    seed : int
        Seed of the weights.
    size : VideoSize
        Clip the VAE is configured for.
    pipeline : str, optional
        Class name, by default the model's first one.

    Returns
    -------
    DiffusionPipeline
        On the CPU, float32 but for the transformer given.
    """
    if transformer is None:
        transformer = model.create(model.config("tiny"), dtype=torch.float32, seed=seed)
    config = transformer.config
    pipeline_class = getattr(diffusers, pipeline or model.pipeline_class)
    pipe = pipeline_class(
        tokenizer=byte_tokenizer(config.max_text_seq_length),
        text_encoder=tiny_text_encoder(config.text_embed_dim, seed=seed),
        vae=tiny_vae(config.out_channels, size, seed=seed),
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(
            timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction"
        ),
    )
    # The released VAE decodes in tiles to save memory; these sizes need none.
    pipe.vae.disable_tiling()
    return pipe


def tiny_vae(channels: int, size: VideoSize, *, seed: int = 0) -> AutoencoderKLCogVideoX:
    """CogVideoX's VAE with its compression (4 in time, 8 in space) and few channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(16,) * _SPATIAL_STAGES,
            latent_channels=channels,
            layers_per_block=1,
            norm_num_groups=4,
            sample_height=size.height,
            sample_width=size.width,
        )
    return vae.eval()
