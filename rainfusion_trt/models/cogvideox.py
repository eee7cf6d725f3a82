"""CogVideoX 2B, 5B and 1.5-5B, text to video (arXiv 2408.06072; diffusers CogVideoXPipeline).

Text and video attend jointly, text first, without padding mask. The rotary tables are inputs of the
transformer, so one graph serves every size; 2B adds a position table of its own instead, which is
computed for one size and baked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import GenerationDefaults, GraphInput, VideoModel, VideoSize
from rainfusion_trt.models.examples import constant
from rainfusion_trt.models.transformer import as_transformer

# Settings that the shapes of the graph's inputs need, as diffusers has them by default.
_SHAPES = {
    "in_channels": 16,
    "attention_head_dim": 64,
    "text_embed_dim": 4096,
    "max_text_seq_length": 226,
}
_TINY = {
    **_SHAPES,
    "num_attention_heads": 2,
    "num_layers": 2,
    "text_embed_dim": 32,
    "time_embed_dim": 16,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": 16,
}


class CogVideoX(VideoModel):
    """A CogVideoX variant, told apart by its constructor arguments."""

    text = "first"
    transformer_class = "CogVideoXTransformer3DModel"
    pipeline_class = "CogVideoXPipeline"
    sequences = {"text_tokens": "max_text_seq_length"}
    refused = dict.fromkeys(("timestep_cond", "ofs"), "leave it out")
    distinctive = (
        "patch_size_t",
        "use_rotary_positional_embeddings",
        "use_learned_positional_embeddings",
        "ofs_embed_dim",
    )
    remedy = "choose the model it belongs to (image-to-video checkpoints are not supported)"

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
        self.rotary = full.get("use_rotary_positional_embeddings", False)
        self.patch_frames = full.get("patch_size_t") or 1
        self.configs = {"full": {**_SHAPES, **full}, "tiny": dict(tiny)}
        self.one_size = not self.rotary  # its position table is baked
        self.inputs = (
            GraphInput("hidden_states", ("batch", "frames", "in_channels", "height", "width")),
            GraphInput("encoder_hidden_states", ("batch", "text_tokens", "text_embed_dim")),
            # float32, since some schedulers have fractions; version 0.2 made it an integer.
            GraphInput("timestep", ("batch",), torch.float32, constant(500)),
        )
        if self.rotary:
            self.inputs += tuple(
                GraphInput(name, ("video_tokens", "attention_head_dim"), torch.float32, None)
                for name in ("rotary_cos", "rotary_sin")
            )

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return (
            config["use_rotary_positional_embeddings"] == self.rotary
            and (config["patch_size_t"] or 1) == self.patch_frames
            and not config["use_learned_positional_embeddings"]
            and not config["ofs_embed_dim"]
        )

    # -- the graph ------------------------------------------------------------------------------

    def prepare(self, transformer: nn.Module, size: VideoSize) -> None:
        """Make 2B's position table, float64 in diffusers, a buffer in the model's dtype."""
        if self.rotary:
            return
        frames, height, width = self._latent_size(size)
        known = as_transformer(transformer)
        embed = known.patch_embed
        embed.sample_height, embed.sample_width = height, width
        embed.sample_frames = (frames - 1) * self.vae_frames + 1
        table = embed._get_positional_embeddings(height, width, embed.sample_frames)
        embed.pos_embedding = table.to(known.device, known.dtype)

    def computed_inputs(
        self, config: Mapping[str, Any], grid: tuple[int, int, int], device: str | torch.device
    ) -> dict[str, Tensor]:
        """The rotary tables."""
        if not self.rotary:
            return {}
        cos, sin = _rotary_tables(config["attention_head_dim"], grid, device)
        return {"rotary_cos": cos, "rotary_sin": sin}

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """The rotary tables together are one argument."""
        kwargs = super().forward_kwargs(graph_inputs)
        if self.rotary:
            kwargs["image_rotary_emb"] = (kwargs.pop("rotary_cos"), kwargs.pop("rotary_sin"))
        return kwargs

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inverse: the two rotary tables are inputs of their own."""
        rotary = forward_kwargs.get("image_rotary_emb")
        if self.rotary != (rotary is not None):
            raise InvalidInputError(
                f"{self.name}: image_rotary_emb is {'missing' if self.rotary else 'given'}, so the "
                "call comes from a pipeline of another CogVideoX"
            )
        if rotary is not None:
            cos, sin = rotary
            forward_kwargs = {**forward_kwargs, "rotary_cos": cos, "rotary_sin": sin}
        return super().graph_inputs(forward_kwargs)


def _rotary_tables(
    head_size: int, grid: tuple[int, int, int], device: str | torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [T*H*W, D], at whole positions (the pipeline's at the base size)."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    frames, height, width = grid
    return get_3d_rotary_pos_embed(
        embed_dim=head_size,
        crops_coords=((0, 0), (height, width)),
        grid_size=(height, width),
        temporal_size=frames,
        device=torch.device(device),
    )


_FULL_5B = {
    "num_layers": 42,
    "num_attention_heads": 48,
    "use_rotary_positional_embeddings": True,
}
_PATCH_1_5 = {"patch_size_t": 2, "patch_bias": False}

COGVIDEOX_2B = CogVideoX(
    "cogvideox-2b",
    full={"num_layers": 30, "num_attention_heads": 30},
    tiny=_TINY,
    defaults=GenerationDefaults(VideoSize(49, 480, 720), 50, 6.0, torch.float16, 8),
)
COGVIDEOX_5B = CogVideoX(
    "cogvideox-5b",
    aliases=("cogvideox",),
    full=_FULL_5B,
    tiny={**_TINY, "use_rotary_positional_embeddings": True},
    defaults=GenerationDefaults(VideoSize(49, 480, 720), 50, 6.0, torch.bfloat16, 8),
)
COGVIDEOX_1_5_5B = CogVideoX(
    "cogvideox1.5-5b",
    aliases=("cogvideox1.5",),
    full={
        **_FULL_5B,
        **_PATCH_1_5,
        "sample_height": 300,
        "sample_width": 300,
        "sample_frames": 81,
    },
    tiny={**_TINY, **_PATCH_1_5, "use_rotary_positional_embeddings": True},
    defaults=GenerationDefaults(VideoSize(81, 768, 1360), 50, 6.0, torch.bfloat16, 16),
)
