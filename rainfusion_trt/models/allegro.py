"""Allegro (arXiv 2410.15458) and OpenSoraPlan v1.2 (arXiv 2412.00131), text to video.

Both are diffusers' AllegroTransformer3DModel: OpenSoraPlan v1.2 has the same weights, operations
and inputs, and only its rotary scales differ. Self-attention sees the video alone; text comes in by
cross-attention. The VAE of OpenSoraPlan is not in diffusers: decode the latents of AllegroPipeline
(``output_type="latent"``) with its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.argument_types import typed
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.allegro_rotary import rotary_tables, rows_of_tokens, scales_of
from rainfusion_trt.models.base import GenerationDefaults, GraphInput, VideoModel, VideoSize
from rainfusion_trt.models.examples import constant, prompt_mask
from rainfusion_trt.models.opensora_checkpoint import is_original, load_original
from rainfusion_trt.models.transformer import Transformer

TEXT_TOKENS = 512  # what AllegroPipeline pads every prompt to

_ALLEGRO_SCALES = {
    "interpolation_scale_t": 2.2,
    "interpolation_scale_h": 2.0,
    "interpolation_scale_w": 2.0,
}
# For the 720p checkpoints; the 480p ones were trained with 1, 1, 1. Each config.json says which.
_OPENSORA_720P_SCALES = {
    "interpolation_scale_t": 1.0,
    "interpolation_scale_h": 1.5,
    "interpolation_scale_w": 2.0,
}
# Settings that the shapes of the graph's inputs need, as diffusers has them by default.
_SHAPES = {"in_channels": 4, "attention_head_dim": 96, "caption_channels": 4096}
_TINY = {
    **_SHAPES,
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

    text = "none"
    transformer_class = "AllegroTransformer3DModel"
    pipeline_class = "AllegroPipeline"
    distinctive = ("patch_size_t", "patch_size")
    unseen = "the scales of its positions (interpolation_scale_t, _h and _w)"
    sequences = {"text_tokens": TEXT_TOKENS}
    refused = {"attention_mask": "leave it out: it masks the video, whose tokens are all valid"}
    inputs = (
        GraphInput("hidden_states", ("batch", "in_channels", "frames", "height", "width")),
        GraphInput("encoder_hidden_states", ("batch", "text_tokens", "caption_channels")),
        GraphInput("encoder_attention_mask", ("batch", "text_tokens"), torch.int64, prompt_mask),
        # Not whole: the scheduler spaces its steps evenly over 0 to 999.
        GraphInput("timestep", ("batch",), torch.float32, constant(504.5)),
        GraphInput("rotary_cos", ("video_tokens", "attention_head_dim"), torch.float32, None),
        GraphInput("rotary_sin", ("video_tokens", "attention_head_dim"), torch.float32, None),
    )

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

    def computed_inputs(
        self, config: Mapping[str, Any], grid: tuple[int, int, int], device: str | torch.device
    ) -> dict[str, Tensor]:
        """The rotary tables."""
        cos, sin = rotary_tables(config, grid, device)
        return {"rotary_cos": cos, "rotary_sin": sin}

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """One row of the rotary tables per token: the tables of t, h and w beside each other."""
        kwargs = super().forward_kwargs(graph_inputs)
        cos, sin = kwargs.pop("rotary_cos"), kwargs.pop("rotary_sin")
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
        """The inverse: one batch axis over the text, a mask even where all of it counts."""
        text = forward_kwargs["encoder_hidden_states"]
        batch = forward_kwargs["hidden_states"].shape[0]
        text = text.reshape(batch, -1, text.shape[-1])  # the pipeline gives [B, 1, L, C]
        mask = forward_kwargs.get("encoder_attention_mask")
        if mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.int64, device=text.device)
        if mask.shape != text.shape[:2]:
            raise InvalidInputError(
                f"{self.name}: encoder_attention_mask has shape {tuple(mask.shape)}, expected "
                f"{tuple(text.shape[:2])}: 1 for a token of the prompt and 0 for padding"
            )
        cos, sin = self._gathered(forward_kwargs.get("image_rotary_emb"))
        given = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
        tables = {"rotary_cos": cos, "rotary_sin": sin}
        return super().graph_inputs({**forward_kwargs, **given, **tables})

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

    def check_media(self, arguments: Mapping[str, Any], *, exported: bool) -> None:
        """Also that height and width are of whole tokens, which the pipeline leaves to chance."""
        super().check_media(arguments, exported=exported)
        self._check_pixels(arguments)

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

    @typed
    def load(
        self, checkpoint: str | Path, *, dtype: torch.dtype, component: str = "transformer"
    ) -> Transformer:
        if is_original(str(checkpoint)):
            return load_original(self.diffusers_class(), str(checkpoint), dtype=dtype)
        return super().load(checkpoint, dtype=dtype, component=component)


_FULL = {**_SHAPES, "num_layers": 32}

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
