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
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import (
    AttentionLayout,
    GenerationDefaults,
    TextPlace,
    VideoModel,
    VideoSize,
)
from rainfusion_trt.models.examples import normal_source

TEXT_TOKENS = 512  # UMT5's, padded with zeros and not masked

_TINY = {
    "attention_head_dim": 128,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}


class Wan(VideoModel):
    """A text-to-video Wan, told apart by its width and channels.

    Parameters
    ----------
    vae_pixels
        Pixels a latent row or column.
    token_timesteps
        Whether the pipeline gives a timestep for every token (its `expand_timesteps`).
    components
        Transformers of the pipeline.
    """

    text: TextPlace = "none"
    transformer_class = "WanTransformer3DModel"
    pipeline_class = "WanPipeline"
    guidance_batch = False
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
        self.configs = {
            "full": {"image_dim": None, **full},
            "tiny": {"image_dim": None, **_TINY, **tiny},
        }
        if token_timesteps:
            self.tiny_size = VideoSize(9, 128, 192)

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return any(
            all(config[key] == known[key] for key in self.distinctive)
            for known in self.configs.values()
        )

    # -- the graph ------------------------------------------------------------------------------

    def example_inputs(
        self,
        transformer: nn.Module,
        size: VideoSize,
        *,
        batch: int,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> dict[str, Tensor]:
        config = transformer.config
        frames, height, width = self._latent_size(size)
        normal = normal_source(transformer, device, seed)
        timesteps = (batch,)
        if self.token_timesteps:
            timesteps = (batch, frames * height * width // self.patch_pixels**2)
        return {
            "hidden_states": normal(batch, config.in_channels, frames, height, width),
            "timestep": torch.full(timesteps, 500.0, device=device),
            "encoder_hidden_states": normal(batch, TEXT_TOKENS, config.text_dim),
        }

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        timestep = {0: "batch", 1: "video_tokens"} if self.token_timesteps else {0: "batch"}
        return {
            "hidden_states": {0: "batch", 2: "frames", 3: "height", 4: "width"},
            "timestep": timestep,
            "encoder_hidden_states": {0: "batch", 1: "text_tokens"},
        }

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        names = ("hidden_states", "timestep", "encoder_hidden_states")
        return {name: graph_inputs[name] for name in names}

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        self._refuse(
            forward_kwargs,
            "encoder_hidden_states_image",
            remedy="leave it out, since the model is text to video",
        )
        hidden_states = forward_kwargs["hidden_states"]
        timestep = torch.as_tensor(forward_kwargs["timestep"], device=hidden_states.device)
        if self.token_timesteps != (timestep.dim() == 2):
            wanted = "[B, tokens]" if self.token_timesteps else "[B]"
            raise InvalidInputError(
                f"{self.name}: timestep has shape {list(timestep.shape)}, the graph takes "
                f"{wanted}; set expand_timesteps={self.token_timesteps} in the pipeline's "
                "configuration"
            )
        if not self.token_timesteps:
            timestep = timestep.expand(hidden_states.shape[0])
        return {
            "hidden_states": hidden_states,
            "timestep": timestep.float(),  # schedulers of flow matching have fractions
            "encoder_hidden_states": forward_kwargs["encoder_hidden_states"],
        }

    # -- attention ------------------------------------------------------------------------------

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        grid = self._grid(forward_kwargs["hidden_states"][0, 0])
        return self._video_only(grid, forward_kwargs["encoder_hidden_states"].shape[1])


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
