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

from rainfusion_trt.errors import InvalidInputError, UnsupportedError

from .base import (
    AttentionLayout,
    ConfigSize,
    GenerationDefaults,
    TextPlace,
    VideoModel,
    VideoSize,
)
from .weights import load_transformer

VAE_FRAMES = 4  # pixel frames a latent frame, after the first
VAE_PIXELS = 8  # pixels a latent row or column
TEXT_TOKENS = 256  # what the pipeline pads prompts to

_INPUTS = (
    "hidden_states",
    "timestep",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "pooled_projections",
    "guidance",
)
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


class HunyuanVideo(VideoModel):
    """HunyuanVideo, the text-to-video transformer with embedded guidance."""

    name = "hunyuanvideo"
    text: TextPlace = "last"
    configs = _CONFIGS
    transformer_class = "HunyuanVideoTransformer3DModel"
    pipeline_class = "HunyuanVideoPipeline"
    guidance_batch = False
    defaults = GenerationDefaults(VideoSize(129, 720, 1280), 50, 6.0, torch.bfloat16, 24)

    def matches(self, transformer: nn.Module) -> bool:
        if not super().matches(transformer):
            return False
        config = transformer.config
        return (
            config.image_condition_type is None
            and config.guidance_embeds
            and config.in_channels == config.out_channels
            and (config.patch_size_t, config.patch_size) == (1, 2)
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

    def load(self, checkpoint: str, *, dtype: torch.dtype) -> nn.Module:
        transformer = load_transformer(self.diffusers_class(), checkpoint, dtype=dtype)
        if not self.matches(transformer):
            config = transformer.config
            raise UnsupportedError(
                f"checkpoint {checkpoint!r} is not {self.name}: its transformer has "
                f"image_condition_type={config.image_condition_type}, guidance_embeds="
                f"{config.guidance_embeds}, {config.in_channels} channels in and "
                f"{config.out_channels} out, patches of {config.patch_size_t}x{config.patch_size}; "
                "only text-to-video checkpoints with embedded guidance are supported"
            )
        return transformer

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
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=generator, device=device)
            return values.to(transformer.dtype)

        # Prompts of different length, each shorter than the padding.
        lengths = torch.arange(batch, device=device) % 4 * (TEXT_TOKENS // 8) + TEXT_TOKENS // 4
        positions = torch.arange(TEXT_TOKENS, device=device)
        return {
            "hidden_states": normal(batch, config.in_channels, *self._latent_size(size)),
            "timestep": torch.full((batch,), 500.0, device=device),
            "encoder_hidden_states": normal(batch, TEXT_TOKENS, config.text_embed_dim),
            "encoder_attention_mask": (positions < lengths[:, None]).to(torch.int32),
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
        return {name: graph_inputs[name] for name in _INPUTS}

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        if forward_kwargs.get("attention_kwargs"):
            raise UnsupportedError(
                f"{self.name}: the exported graph has no input for attention_kwargs"
            )
        for name in _INPUTS:
            if forward_kwargs.get(name) is None:
                raise InvalidInputError(
                    f"{self.name}: {name} is missing, so the call does not come from "
                    f"{self.pipeline_class}"
                )
        inputs = {name: forward_kwargs[name] for name in _INPUTS}
        batch = len(inputs["hidden_states"])
        # The pipeline hands over the mask in the model's dtype, guidance and timesteps as floats.
        for name in ("timestep", "guidance"):
            inputs[name] = inputs[name].to(torch.float32).expand(batch)
        inputs["encoder_attention_mask"] = inputs["encoder_attention_mask"].to(torch.int32)
        return inputs

    # -- attention ------------------------------------------------------------------------------

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        grid = forward_kwargs["hidden_states"][0, 0, :, ::2, ::2]
        frames, height, width = grid.shape
        mask = forward_kwargs["encoder_attention_mask"]
        return AttentionLayout(
            grid=grid,
            text=self.text,
            kv_len=mask.sum(dim=1, dtype=torch.int32) + frames * height * width,
            text_tokens=mask.shape[1],
        )

    def attention_count(self, config: Mapping[str, Any]) -> int:
        return config["num_layers"] + config["num_single_layers"]

    def _latent_size(self, size: VideoSize) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        unit = VAE_PIXELS * 2
        if size.frames < 1 or (size.frames - 1) % VAE_FRAMES:
            raise InvalidInputError(
                f"frames={size.frames} must be 4k + 1 for {self.name}, such as "
                f"{self.defaults.size.frames}"
            )
        for name, pixels in (("height", size.height), ("width", size.width)):
            if pixels < unit or pixels % unit:
                raise InvalidInputError(
                    f"{name}={pixels} must be a multiple of {unit} for {self.name}, such as "
                    f"{getattr(self.defaults.size, name)}"
                )
        frames = (size.frames - 1) // VAE_FRAMES + 1
        return frames, size.height // VAE_PIXELS, size.width // VAE_PIXELS


HUNYUANVIDEO = HunyuanVideo()
