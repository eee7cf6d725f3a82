"""Allegro (arXiv 2410.15458) and OpenSoraPlan v1.2 (arXiv 2412.00131), text to video.

Both are diffusers' AllegroTransformer3DModel: OpenSoraPlan v1.2 has the same weights, operations
and inputs, and only its rotary scales differ. Self-attention sees the video alone; text comes in by
cross-attention. The VAE of OpenSoraPlan is not in diffusers: decode the latents of AllegroPipeline
(``output_type="latent"``) with its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.allegro_rotary import rotary_tables, rows_of_tokens, scales_of
from rainfusion_trt.models.base import (
    AttentionLayout,
    GenerationDefaults,
    TextPlace,
    VideoModel,
    VideoSize,
)
from rainfusion_trt.models.examples import normal_source
from rainfusion_trt.models.opensora_checkpoint import is_original, load_original

TEXT_TOKENS = 512  # what AllegroPipeline pads every prompt to

_ALLEGRO_SCALES = {
    "interpolation_scale_t": 2.2,
    "interpolation_scale_h": 2.0,
    "interpolation_scale_w": 2.0,
}
# Of the 720p checkpoints; the 480p ones were trained with 1, 1, 1. A checkpoint's own config tells.
_OPENSORA_720P_SCALES = {
    "interpolation_scale_t": 1.0,
    "interpolation_scale_h": 1.5,
    "interpolation_scale_w": 2.0,
}
_TINY = {
    "num_attention_heads": 2,
    "num_layers": 2,
    "cross_attention_dim": 192,  # the width: 2 heads of 96
    "caption_channels": 32,
    "sample_height": 8,
    "sample_width": 12,
    "sample_frames": 3,
}


class Allegro(VideoModel):
    """A user of AllegroTransformer3DModel, told apart by its rotary scales."""

    text: TextPlace = "none"
    transformer_class = "AllegroTransformer3DModel"
    pipeline_class = "AllegroPipeline"
    distinctive = ("patch_size_t", "patch_size")

    def __init__(
        self,
        name: str,
        *,
        aliases: tuple[str, ...] = (),
        full: Mapping[str, Any],
        tiny: Mapping[str, Any],
        defaults: GenerationDefaults,
    ) -> None:
        self.name = name
        self.aliases = aliases
        self.defaults = defaults
        self.configs = {"full": dict(full), "tiny": dict(tiny)}

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return (
            (config["patch_size_t"], config["patch_size"]) == (1, self.patch_pixels)
            and None not in scales_of(config)
            and self._has_scales(scales_of(config))
        )

    def _has_scales(self, scales: tuple[float, float, float]) -> bool:
        return scales == tuple(_ALLEGRO_SCALES.values())

    def _described(self, config: Mapping[str, Any]) -> str:
        scales = scales_of(config)
        return f"{super()._described(config)} and interpolation scales (t, h, w) {scales}"

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
        mask = torch.ones(batch, TEXT_TOKENS, dtype=torch.int64, device=device)
        mask[:, TEXT_TOKENS // 3 :] = 0  # a prompt, then padding
        cos, sin = rotary_tables(
            config, (frames, height // self.patch_pixels, width // self.patch_pixels), device
        )
        return {
            "hidden_states": normal(batch, config.in_channels, frames, height, width),
            "encoder_hidden_states": normal(batch, TEXT_TOKENS, config.caption_channels),
            "encoder_attention_mask": mask,
            # Not whole: the scheduler spaces its steps evenly over 0 to 999.
            "timestep": torch.full((batch,), 504.5, device=device),
            "rotary_cos": cos,
            "rotary_sin": sin,
        }

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {
            "hidden_states": {0: "batch", 2: "frames", 3: "height", 4: "width"},
            "encoder_hidden_states": {0: "batch", 1: "text_tokens"},
            "encoder_attention_mask": {0: "batch", 1: "text_tokens"},
            "timestep": {0: "batch"},
            "rotary_cos": {0: "video_tokens"},
            "rotary_sin": {0: "video_tokens"},
        }

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """One row of the rotary tables per token: the tables of t, h and w beside each other."""
        kwargs = {
            name: graph_inputs[name]
            for name in (
                "hidden_states",
                "encoder_hidden_states",
                "encoder_attention_mask",
                "timestep",
            )
        }
        cos, sin = graph_inputs["rotary_cos"], graph_inputs["rotary_sin"]
        if cos.shape != sin.shape:
            raise InvalidInputError(
                f"{self.name}: rotary_cos and rotary_sin have shapes {tuple(cos.shape)} and "
                f"{tuple(sin.shape)}; they must be equal"
            )
        rows = torch.arange(cos.shape[0], device=cos.device)[None]
        tables = tuple(zip(cos.chunk(3, dim=-1), sin.chunk(3, dim=-1), strict=True))
        kwargs["image_rotary_emb"] = (tables, (rows, rows, rows))
        return kwargs

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        self._refuse(
            forward_kwargs,
            "attention_mask",
            remedy="leave it out: it masks the video, whose tokens are all valid",
        )
        hidden_states = forward_kwargs["hidden_states"]
        batch = hidden_states.shape[0]
        text = forward_kwargs["encoder_hidden_states"]
        text = text.reshape(batch, -1, text.shape[-1])  # the pipeline gives [B, 1, L, C]
        mask = forward_kwargs.get("encoder_attention_mask")
        if mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.int64, device=text.device)
        if mask.shape != text.shape[:2]:
            raise InvalidInputError(
                f"{self.name}: encoder_attention_mask has shape {tuple(mask.shape)}, expected "
                f"{tuple(text.shape[:2])}: 1 for a token of the prompt and 0 for padding"
            )
        timestep = torch.as_tensor(forward_kwargs["timestep"], device=hidden_states.device)
        cos, sin = self._gathered(forward_kwargs.get("image_rotary_emb"))
        return {
            "hidden_states": hidden_states,
            "encoder_hidden_states": text,
            "encoder_attention_mask": mask.to(torch.int64),
            "timestep": timestep.float().expand(batch),
            "rotary_cos": cos,
            "rotary_sin": sin,
        }

    def _gathered(self, rotary: Any) -> tuple[Tensor, Tensor]:
        """cos and sin of every token, from the tables and positions of the three axes."""
        if rotary is None:
            raise InvalidInputError(
                f"{self.name}: image_rotary_emb is missing; pass what AllegroPipeline makes"
            )
        tables, positions = rotary
        if any(position.shape[0] != 1 for position in positions):
            raise UnsupportedError(
                f"{self.name}: image_rotary_emb has positions of shape "
                f"{tuple(positions[0].shape)}; the exported graph takes one row for the batch"
            )
        return rows_of_tokens(tables, [position[0] for position in positions])

    # -- attention ------------------------------------------------------------------------------

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        grid = self._grid(forward_kwargs["hidden_states"][0, 0])
        return self._video_only(grid, forward_kwargs["encoder_hidden_states"].shape[-2])

    def _latent_frames(self, frames: int) -> int:
        """Rounded as the pipeline does: any number of frames is a clip."""
        if frames < 1:
            raise self._bad_size("frames", frames, "1 or more")
        if frames % 2:  # a first frame of its own: 93 -> 24
            return -(-(frames - 1) // self.vae_frames) + 1
        return -(-frames // self.vae_frames)  # 88 -> 22


class OpenSoraPlan(Allegro):
    """OpenSoraPlan v1.2, in diffusers' format or as its authors published it."""

    def _has_scales(self, scales: tuple[float, float, float]) -> bool:
        return not super()._has_scales(scales)

    def load(
        self, checkpoint: str, *, dtype: torch.dtype, component: str = "transformer"
    ) -> nn.Module:
        if is_original(checkpoint):
            return load_original(self.diffusers_class(), checkpoint, dtype=dtype)
        return super().load(checkpoint, dtype=dtype, component=component)


_FULL = {"num_layers": 32}

ALLEGRO = Allegro(
    "allegro",
    full={**_FULL, **_ALLEGRO_SCALES},
    tiny={**_TINY, **_ALLEGRO_SCALES},
    defaults=GenerationDefaults(VideoSize(88, 720, 1280), 100, 7.5, torch.bfloat16, 15),
)
OPENSORAPLAN_1_2 = OpenSoraPlan(
    "opensoraplan-1.2",
    aliases=("opensoraplan", "opensora-plan-1.2"),
    full={**_FULL, **_OPENSORA_720P_SCALES, "sample_frames": 24},
    tiny={**_TINY, **_OPENSORA_720P_SCALES},
    defaults=GenerationDefaults(VideoSize(93, 720, 1280), 100, 7.5, torch.bfloat16, 24),
)
