"""Wan 2.1 and Wan 2.2, text to video (arXiv 2503.20314; diffusers WanPipeline).

Self-attention is over the video alone, the text comes in by cross-attention. Rotary tables are
buffers of the transformer, cut to the grid inside its forward, so one graph serves every size.

Wan 2.2 A14B has two transformers of 2.1-14B's shape, one for the noisy and one for the late steps.
Each is exported by itself, and `Pipeline` drives both. `enable` takes them one by one and cannot
tell them from 2.1-14B, which makes no difference to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import GenerationDefaults, GraphInput, VideoModel, VideoSize
from rainfusion_trt.models.examples import constant

_FULL = {"image_dim": None, "text_dim": 4096}
_TINY = {
    "image_dim": None,
    "attention_head_dim": 128,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}


class Wan(VideoModel):
    """A Wan, told apart by its width and channels.

    Parameters
    ----------
    vae_pixels
        Pixels a latent row or column.
    token_timesteps
        Whether the pipeline gives a timestep for every token (its `expand_timesteps`).
    components
        Transformers of the pipeline.
    """

    text = "none"
    transformer_class = "WanTransformer3DModel"
    pipeline_class = "WanPipeline"
    guidance_batch = False
    sequences = {"text_tokens": 512}  # UMT5's, padded with zeros and not masked
    refused = {
        "encoder_hidden_states_image": "leave it out, since the model is text to video",
    }
    # They tell the members of the family apart, and image-to-video variants from them.
    distinctive = ("in_channels", "out_channels", "num_attention_heads", "image_dim")
    remedy = "choose the model it belongs to (image-to-video checkpoints are not supported)"

    def __init__(
        self,
        name: str,
        *,
        full: Mapping[str, Any],
        tiny: Mapping[str, Any],
        defaults: GenerationDefaults,
        vae_pixels: int = 8,
        token_timesteps: bool = False,
        components: tuple[str, ...] = ("transformer",),
    ) -> None:
        self.name = name
        self.defaults = defaults
        self.vae_pixels = vae_pixels
        self.token_timesteps = token_timesteps
        self.components = components
        self.configs = {"full": {**_FULL, **full}, "tiny": {**_TINY, **tiny}}
        timestep = ("batch", "video_tokens") if token_timesteps else ("batch",)
        self.inputs = (
            GraphInput("hidden_states", ("batch", "in_channels", "frames", "height", "width")),
            # Schedulers of flow matching have fractions.
            GraphInput("timestep", timestep, torch.float32, constant(500.0)),
            GraphInput("encoder_hidden_states", ("batch", "text_tokens", "text_dim")),
        )
        if token_timesteps:
            self.tiny_size = VideoSize(9, 128, 192)

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return any(
            all(config[key] == known[key] for key in self.distinctive)
            for known in self.configs.values()
        )

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Also check the timestep: one for each token, or one for all of them."""
        timestep = forward_kwargs.get("timestep")
        shape = [] if timestep is None else list(torch.as_tensor(timestep).shape)
        if timestep is not None and self.token_timesteps != (len(shape) == 2):
            wanted = "[B, tokens]" if self.token_timesteps else "[B]"
            raise InvalidInputError(
                f"{self.name}: timestep has shape {shape}, the graph takes "
                f"{wanted}; set expand_timesteps={self.token_timesteps} in the pipeline's "
                "configuration"
            )
        return super().graph_inputs(forward_kwargs)


_CHANNELS_16 = {"in_channels": 16, "out_channels": 16}
_CHANNELS_48 = {"in_channels": 48, "out_channels": 48}

WAN_2_1_1_3B = Wan(
    "wan2.1-1.3b",
    full={**_CHANNELS_16, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    tiny={**_CHANNELS_16, "num_attention_heads": 2},
    defaults=GenerationDefaults(VideoSize(81, 480, 832), 50, 5.0, torch.bfloat16, 16),
)
WAN_2_1_14B = Wan(
    "wan2.1-14b",
    full={**_CHANNELS_16, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    tiny={**_CHANNELS_16, "num_attention_heads": 3},
    defaults=GenerationDefaults(VideoSize(81, 720, 1280), 50, 5.0, torch.bfloat16, 16),
)
WAN_2_2_A14B = Wan(
    "wan2.2-a14b",
    full=WAN_2_1_14B.configs["full"],
    tiny=WAN_2_1_14B.configs["tiny"],
    defaults=GenerationDefaults(VideoSize(81, 720, 1280), 40, 4.0, torch.bfloat16, 16),
    components=("transformer", "transformer_2"),
)
WAN_2_2_TI2V_5B = Wan(
    "wan2.2-ti2v-5b",
    full={**_CHANNELS_48, "num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30},
    tiny={**_CHANNELS_48, "num_attention_heads": 2},
    defaults=GenerationDefaults(VideoSize(121, 704, 1280), 50, 5.0, torch.bfloat16, 24),
    vae_pixels=16,
    token_timesteps=True,
)
