"""HunyuanVideo, text to video (arXiv 2412.03603; diffusers HunyuanVideoPipeline).

Video and text attend jointly in double- and single-stream blocks, text last. The attention mask
only cuts the padding at the end of the text, so its length takes the mask's place. The rotary
tables are computed in the graph from the clip's shape; guidance is an input, not a second call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import ConfigSize, GenerationDefaults, GraphInput, VideoSize
from rainfusion_trt.models.examples import constant, prompt_masks
from rainfusion_trt.models.hunyuan import Hunyuan

_CONFIGS: dict[ConfigSize, dict[str, Any]] = {
    "full": {
        "num_layers": 20,
        "num_single_layers": 40,
        "in_channels": 16,
        "text_embed_dim": 4096,
        "pooled_projection_dim": 768,
    },
    "tiny": {
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "rope_axes_dim": (8, 28, 28),
        "in_channels": 4,
        "out_channels": 4,
        "text_embed_dim": 32,
        "pooled_projection_dim": 16,
    },
}


class HunyuanVideo(Hunyuan):
    """HunyuanVideo, the transformer with embedded guidance."""

    name = "hunyuanvideo"
    defaults = GenerationDefaults(VideoSize(129, 720, 1280), 50, 6.0, torch.bfloat16, 24)
    sequences = {"text_tokens": 256}  # what the pipeline pads prompts to
    inputs = (
        GraphInput("hidden_states", ("batch", "in_channels", "frames", "height", "width")),
        GraphInput("timestep", ("batch",), torch.float32, constant(500.0)),
        GraphInput("encoder_hidden_states", ("batch", "text_tokens", "text_embed_dim")),
        GraphInput("encoder_attention_mask", ("batch", "text_tokens"), torch.int32, prompt_masks),
        GraphInput("pooled_projections", ("batch", "pooled_projection_dim")),
        GraphInput("guidance", ("batch",), torch.float32, constant(defaults.guidance_scale * 1000)),
    )
    refused = {"attention_kwargs": "leave it out"}
    configs = _CONFIGS
    transformer_class = "HunyuanVideoTransformer3DModel"
    pipeline_class = "HunyuanVideoPipeline"
    distinctive = (
        "image_condition_type",
        "guidance_embeds",
        "in_channels",
        "out_channels",
        "patch_size_t",
        "patch_size",
    )
    remedy = "only text-to-video checkpoints with embedded guidance are supported"

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return (
            config["image_condition_type"] is None
            and config["guidance_embeds"]
            and config["in_channels"] == config["out_channels"]
            and (config["patch_size_t"], config["patch_size"])
            == (self.patch_frames, self.patch_pixels)
        )

    def config(self, size: ConfigSize = "full", *, layers: int | None = None) -> dict[str, Any]:
        """Constructor arguments; `layers` is the depth of each kind of block, or all there are."""
        config = dict(self.configs[size])
        if layers is not None:
            kinds = ("num_layers", "num_single_layers")
            most = max(config[kind] for kind in kinds)
            if not 1 <= layers <= most:
                raise InvalidInputError(
                    f"layers={layers} must be between 1 and {most}, the larger number of blocks of "
                    f"one kind in {self.name} ({size})"
                )
            config.update({kind: min(layers, config[kind]) for kind in kinds})
        return config

    def attention_count(self, config: Mapping[str, Any]) -> int:
        return config["num_layers"] + config["num_single_layers"]


HUNYUANVIDEO = HunyuanVideo()
