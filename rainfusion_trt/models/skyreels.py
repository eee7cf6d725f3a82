"""SkyReels V2: text to video, image to video, diffusion forcing (arXiv 2504.13074; diffusers).

The network is Wan 2.1's: self-attention over the video alone, text by cross-attention, rotary
tables cut to the grid inside the forward. Diffusion forcing gives every latent frame a timestep of
its own. Text-to-video and diffusion-forcing transformers of 14B have one configuration, so `enable`
cannot tell them apart, which makes no difference to it. Image to video is Wan 2.1's too: 20
channels beside the noisy latents, whose latent frame 0 is the image, and its CLIP tokens by
cross-attention.

A transformer that was set to causal blocks of frames (`num_frame_per_block`) masks its
self-attention by frames. RainFusion has no such mask and refuses it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.base import (
    AttentionLayout,
    GenerationDefaults,
    GraphInput,
    VideoModel,
    VideoSize,
)
from rainfusion_trt.models.examples import constant
from rainfusion_trt.models.token_cuts import TokenCuts
from rainfusion_trt.models.transformer import as_transformer
from rainfusion_trt.models.wan import FULL_IMAGE, IMAGE_TOKENS, TEXT_TOKENS, TINY_IMAGE

_CHANNELS = {"in_channels": 16, "out_channels": 16}
_FULL = {**_CHANNELS, "image_dim": None, "pos_embed_seq_len": None, "text_dim": 4096}
_TINY = {
    **_FULL,
    "attention_head_dim": 128,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}


class SkyReelsV2(VideoModel):
    """A SkyReels V2, told apart by its width, its image and whether it is told the frame rate.

    Parameters
    ----------
    frame_timesteps
        Diffusion forcing: a timestep for every latent frame.
    image
        Whether there are embeddings of an image.
    """

    text = "none"
    transformer_class = "SkyReelsV2Transformer3DModel"
    guidance_batch = False
    distinctive = (
        "in_channels",
        "out_channels",
        "num_attention_heads",
        "image_dim",
        "pos_embed_seq_len",
        "inject_sample_info",
    )

    def __init__(
        self,
        name: str,
        *,
        full: Mapping[str, Any],
        tiny: Mapping[str, Any],
        frame_timesteps: bool,
        size: VideoSize,
        image: bool = False,
    ) -> None:
        self.name = name
        self.frame_timesteps = frame_timesteps
        self.image = image
        self.pipeline_class = f"SkyReelsV2{'ImageToVideo' if image else ''}Pipeline"
        if not frame_timesteps:  # which every block takes, one for each token
            self.token_cuts = TokenCuts({("blocks.0", "hidden_states"): 1}, outputs={"rope": 1})
        else:
            self.pipeline_class = "SkyReelsV2DiffusionForcingPipeline"
            self.other_pipelines = (
                "SkyReelsV2DiffusionForcingImageToVideoPipeline",
                "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
            )
        guidance = 5.0 if image else 6.0
        self.defaults = GenerationDefaults(size, 50, guidance, torch.bfloat16, 24)
        self.configs = {"full": {**_FULL, **full}, "tiny": {**_TINY, **tiny}}
        # Padded with zeros and not masked. Diffusers takes the last 512 tokens for the text where
        # there are an image's before them.
        text: str | int = TEXT_TOKENS if image else "text_tokens"
        self.inputs = (
            GraphInput("hidden_states", ("batch", "in_channels", "frames", "height", "width")),
            # Float, since schedulers of flow matching have fractions.
            GraphInput(
                "timestep",
                ("batch", "frames") if frame_timesteps else ("batch",),
                torch.float32,
                constant(500.0),
            ),
            GraphInput("encoder_hidden_states", ("batch", text, "text_dim")),
        )
        if image:
            axes = ("batch", IMAGE_TOKENS, "image_dim")
            self.inputs += (GraphInput("encoder_hidden_states_image", axes),)
        else:
            self.sequences = {"text_tokens": TEXT_TOKENS}
            remedy = "leave it out, since this transformer has no image embeddings"
            self.refused = {"encoder_hidden_states_image": remedy}

    def check_media(self, arguments: Mapping[str, Any], *, exported: bool) -> None:
        """Also that its image embeddings are of the pictures that are given."""
        super().check_media(arguments, exported=exported)
        self.check_start([name for name, value in arguments.items() if value is not None])

    def check_start(self, media: Collection[str]) -> None:
        """Embeddings are of one picture, although the pipeline has an argument for a last one."""
        if self.image and "last_image" in media:
            raise InvalidInputError(
                f"{self.name} starts from one picture: leave last_image out, or take "
                "skyreels-v2-df-14b, which has a last one"
            )

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return any(
            all(config[key] == known.get(key, False) for key in self.distinctive)
            for known in self.configs.values()
        )

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        """The base class's layout; frames in causal blocks have none.

        Raises
        ------
        UnsupportedError
            Self-attention has a causal mask.
        """
        block = as_transformer(transformer).config.get("num_frame_per_block", 1)
        if block > 1:
            raise UnsupportedError(
                f"{self.name}: num_frame_per_block={block} masks self-attention by causal blocks "
                "of frames, and RainFusion has no such mask; call the pipeline with "
                "causal_block_size=1"
            )
        return super().layout(transformer, forward_kwargs)

    # -- the graph ------------------------------------------------------------------------------

    def clip_of_graph(self, size: VideoSize, arguments: Mapping[str, Any]) -> VideoSize:
        """Without the latent frame of a last image, which the pipeline puts behind the clip."""
        return self._without_latents(size, int("last_image" in arguments), "last_image")

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """With the switches of diffusion forcing."""
        kwargs = super().forward_kwargs(graph_inputs)
        if self.frame_timesteps:
            kwargs["enable_diffusion_forcing"] = True
        if self.configs["full"].get("inject_sample_info"):
            # One for the batch: from one for each of its elements diffusers computes a sum that
            # only fits a batch of 1.
            kwargs["fps"] = [_FPS_24]
        return kwargs

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Also check the timestep: one for each latent frame, or one for all of them."""
        timestep = forward_kwargs.get("timestep")
        shape = [] if timestep is None else list(torch.as_tensor(timestep).shape)
        forcing = bool(forward_kwargs.get("enable_diffusion_forcing"))
        if timestep is not None and (
            self.frame_timesteps != (len(shape) == 2) or forcing != self.frame_timesteps
        ):
            wanted = "[B, frames] and enable_diffusion_forcing=True"
            raise InvalidInputError(
                f"{self.name}: timestep has shape {shape} and enable_diffusion_forcing is "
                f"{forcing}, the graph takes {wanted if self.frame_timesteps else '[B] and False'};"
                f" use {self.pipeline_class}"
            )
        fps = forward_kwargs.get("fps")
        if self.configs["full"].get("inject_sample_info") and set(fps or ()) - {_FPS_24}:
            raise UnsupportedError(
                f"{self.name}: the graph is for clips of 24 frames a second (fps embedding "
                f"{_FPS_24}), and this call has {list(fps or ())}; call the pipeline with fps=24, "
                "or use backend='torch'"
            )
        return super().graph_inputs(forward_kwargs)

    def call(
        self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]
    ) -> Tensor | tuple[Tensor, ...]:
        """The forward with the timestep's sines in float32; diffusers' are in float64."""
        embedder = as_transformer(transformer).condition_embedder
        original = embedder.timesteps_proj
        embedder.timesteps_proj = _Float32Timesteps(original.num_channels)
        try:
            return super().call(transformer, forward_kwargs)
        finally:
            embedder.timesteps_proj = original


_FPS_24 = 1  # the pipeline's number for any rate but 16


class _Float32Timesteps(nn.Module):
    """Cosines and sines of timesteps, [...] -> [..., C], as in ``SkyReelsV2Timesteps``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, timesteps: Tensor) -> Tensor:
        half = self.channels // 2
        values = [10000.0 ** (-i / half) for i in range(half)]
        rates = torch.tensor(values, dtype=torch.float32, device=timesteps.device)
        angles = timesteps.float()[..., None] * rates
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


SKYREELS_V2_14B = SkyReelsV2(
    "skyreels-v2-14b",
    full={"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    tiny={"num_attention_heads": 3},
    frame_timesteps=False,
    size=VideoSize(97, 544, 960),
)
SKYREELS_V2_I2V_14B = SkyReelsV2(
    "skyreels-v2-i2v-14b",
    full=FULL_IMAGE,
    tiny=TINY_IMAGE,
    frame_timesteps=False,
    size=VideoSize(97, 544, 960),
    image=True,
)
SKYREELS_V2_DF_14B = SkyReelsV2(
    "skyreels-v2-df-14b",
    full=SKYREELS_V2_14B.configs["full"],
    tiny=SKYREELS_V2_14B.configs["tiny"],
    frame_timesteps=True,
    size=VideoSize(97, 544, 960),
)
SKYREELS_V2_DF_1_3B = SkyReelsV2(
    "skyreels-v2-df-1.3b",
    full={
        "num_attention_heads": 12,
        "ffn_dim": 8960,
        "num_layers": 30,
        "inject_sample_info": True,
    },
    tiny={"num_attention_heads": 2, "inject_sample_info": True},
    frame_timesteps=True,
    size=VideoSize(97, 544, 960),
)
