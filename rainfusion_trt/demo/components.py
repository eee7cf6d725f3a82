"""A whole diffusers pipeline with seeded random weights, small enough for two CPU cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from rainfusion_trt.models.base import VideoModel, VideoSize

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX, DiffusionPipeline
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

DEMO_SIZE = VideoSize(frames=25, height=160, width=256)  # 7 x 10 x 16 tokens
_SPATIAL_STAGES = 4  # halves height and width between stages: 8x, as in the released VAE


def demo_pipeline(
    model: VideoModel,
    transformer: nn.Module | None = None,
    *,
    seed: int = 0,
    size: VideoSize = DEMO_SIZE,
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

    Returns
    -------
    DiffusionPipeline
        On the CPU, float32 but for the transformer given.
    """
    import diffusers

    if transformer is None:
        transformer = model.create(model.config("tiny"), dtype=torch.float32, seed=seed)
    config = transformer.config
    pipeline_class = getattr(diffusers, model.pipeline_class)
    pipe = pipeline_class(
        tokenizer=byte_tokenizer(config.max_text_seq_length),
        text_encoder=tiny_text_encoder(config.text_embed_dim, seed=seed),
        vae=tiny_vae(config.in_channels, size, seed=seed),
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(
            timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction"
        ),
    )
    # The released VAE decodes in tiles to save memory; these sizes need none.
    pipe.vae.disable_tiling()
    return pipe


def byte_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that needs no vocabulary file: one token per byte, then an end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    alphabet = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )


def tiny_text_encoder(width: int, *, seed: int = 0) -> T5EncoderModel:
    """A one-layer T5 encoder of the width the transformer expects, for `byte_tokenizer`."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=384, d_model=width, d_kv=16, d_ff=2 * width, num_layers=1, num_heads=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5EncoderModel(config).eval()


def tiny_vae(channels: int, size: VideoSize, *, seed: int = 0) -> AutoencoderKLCogVideoX:
    """CogVideoX's VAE with its compression (4 in time, 8 in space) and few channels."""
    from diffusers import AutoencoderKLCogVideoX

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
