"""HunyuanVideo, text to video (arXiv 2412.03603; diffusers HunyuanVideoPipeline).

Video and text attend jointly in double- and single-stream blocks, text last. The attention mask
only cuts the padding at the end of the text, so its length takes the mask's place. The rotary
tables are computed in the graph from the clip's shape; guidance is an input, not a second call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import AttentionLayout, ConfigSize, GenerationDefaults, VideoSize
from rainfusion_trt.models.examples import normal_source
from rainfusion_trt.models.hunyuan import HunyuanTextToVideo, prompt_mask

TEXT_TOKENS = 256  # what the pipeline pads prompts to

_CONFIGS: dict[ConfigSize, dict[str, Any]] = {
    "full": {"num_layers": 20, "num_single_layers": 40},
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


class HunyuanVideo(HunyuanTextToVideo):
    """HunyuanVideo, the text-to-video transformer with embedded guidance."""

    name = "hunyuanvideo"
    inputs = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "pooled_projections",
        "guidance",
    )
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
    defaults = GenerationDefaults(VideoSize(129, 720, 1280), 50, 6.0, torch.bfloat16, 24)

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return (
            config.image_condition_type is None
            and config.guidance_embeds
            and config.in_channels == config.out_channels
            and (config.patch_size_t, config.patch_size) == (self.patch_frames, self.patch_pixels)
        )

    # -- building the transformer ---------------------------------------------------------------

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
        normal = normal_source(transformer, device, seed)
        return {
            "hidden_states": normal(batch, config.in_channels, *self._latent_size(size)),
            "timestep": torch.full((batch,), 500.0, device=device),
            "encoder_hidden_states": normal(batch, TEXT_TOKENS, config.text_embed_dim),
            "encoder_attention_mask": prompt_mask(batch, TEXT_TOKENS, device),
            "pooled_projections": normal(batch, config.pooled_projection_dim),
            "guidance": torch.full((batch,), self.defaults.guidance_scale * 1000, device=device),
        }

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {
            "hidden_states": {0: "batch", 2: "frames", 3: "height", 4: "width"},
            "timestep": {0: "batch"},
            "encoder_hidden_states": {0: "batch", 1: "text_tokens"},
            "encoder_attention_mask": {0: "batch", 1: "text_tokens"},
            "pooled_projections": {0: "batch"},
            "guidance": {0: "batch"},
        }

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {name: graph_inputs[name] for name in self.inputs}

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        self._refuse(forward_kwargs, "attention_kwargs")
        inputs = self._checked(forward_kwargs)
        batch = len(inputs["hidden_states"])
        for name in ("timestep", "guidance"):
            inputs[name] = inputs[name].to(torch.float32).expand(batch)
        return inputs

    # -- attention ------------------------------------------------------------------------------

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        return self._padded(self._grid(forward_kwargs["hidden_states"][0, 0]), forward_kwargs)

    def attention_count(self, config: Mapping[str, Any]) -> int:
        return config["num_layers"] + config["num_single_layers"]


HUNYUANVIDEO = HunyuanVideo()
