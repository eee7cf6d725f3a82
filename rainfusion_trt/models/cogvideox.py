"""CogVideoX 2B, 5B and 1.5-5B, from text, an image or a control video (arXiv 2408.06072).

Text and video attend jointly, text first, without padding mask. The rotary tables are inputs of the
transformer, so one graph serves every size; 2B adds a position table of its own instead, which is
computed for one size and baked. An image or a control video is more channels of the latents; 5B
from an image adds a position table too, which was learned for one size, and 1.5-5B from an image
takes a number beside the timestep, ``ofs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import GenerationDefaults, GraphInput, VideoModel, VideoSize
from rainfusion_trt.models.examples import constant
from rainfusion_trt.models.inputs import extent_of
from rainfusion_trt.models.token_cuts import TokenCuts
from rainfusion_trt.models.transformer import as_transformer

# Settings that the shapes of the graph's inputs need, as diffusers has them by default.
_SHAPES = {
    "in_channels": 16,
    "out_channels": 16,
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
    sequences = {"text_tokens": "max_text_seq_length"}
    distinctive = (
        "in_channels",
        "out_channels",
        "patch_size_t",
        "use_rotary_positional_embeddings",
        "use_learned_positional_embeddings",
        "ofs_embed_dim",
    )

    def __init__(
        self,
        name: str,
        *,
        aliases: tuple[str, ...] = (),
        full: Mapping[str, Any],
        tiny: Mapping[str, Any],
        defaults: GenerationDefaults,
        pipelines: tuple[str, ...] = ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline"),
    ) -> None:
        self.name = name
        self.aliases = aliases
        self.defaults = defaults
        self.pipeline_class, *others = pipelines
        self.other_pipelines = tuple(others)
        self.rotary = full.get("use_rotary_positional_embeddings", False)
        self.learned = full.get("use_learned_positional_embeddings", False)
        self.has_ofs = bool(full.get("ofs_embed_dim"))
        self.patch_frames = full.get("patch_size_t") or 1
        self.configs = {"full": {**_SHAPES, **full}, "tiny": {**_TINY, **tiny}}
        cuts = {("transformer_blocks.0", "hidden_states"): 1}
        if self.rotary:
            cuts["", "image_rotary_emb"] = 0
        self.token_cuts = TokenCuts(cuts, outputs={})
        self.one_size = self.learned or not self.rotary  # its position table is baked
        refused = ("timestep_cond",) if self.has_ofs else ("timestep_cond", "ofs")
        self.refused = dict.fromkeys(refused, "leave it out")
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
        if self.has_ofs:
            self.inputs += (GraphInput("ofs", ("batch",), torch.float32, constant(2.0)),)

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        full = self.configs["full"]
        return (
            config["use_rotary_positional_embeddings"] == self.rotary
            and (config["patch_size_t"] or 1) == self.patch_frames
            and config["use_learned_positional_embeddings"] == self.learned
            and bool(config["ofs_embed_dim"]) == self.has_ofs
            # An image or a control video has channels of its own, as many as the latents.
            and config["in_channels"] * full["out_channels"]
            == config["out_channels"] * full["in_channels"]
        )

    # -- the graph ------------------------------------------------------------------------------

    def extents(self, config: Mapping[str, Any], size: VideoSize, batch: int) -> dict[str, int]:
        """Also check that a learned position table is of this size.

        Diffusers puts a computed table in its place for another number of frames, and refuses
        another height or width.
        """
        extents = super().extents(config, size, batch)
        if self.learned:
            axes = ("frames", "height", "width")
            frames, *latent = (extent_of(f"sample_{axis}", config) for axis in axes)
            own = VideoSize(frames, *(extent * self.vae_pixels for extent in latent))
            if size != own:
                raise InvalidInputError(
                    f"size {size}: the position table of this {self.name} was learned for {own} "
                    "alone; use that size"
                )
        return extents

    def clip_of_graph(self, size: VideoSize, arguments: Mapping[str, Any]) -> VideoSize:
        """Of a video all latent frames that text alone would be padded to."""
        if "video" not in arguments:
            return size
        return replace(size, frames=(self._latent_frames(size.frames) - 1) * self.vae_frames + 1)

    def check_media(self, arguments: Mapping[str, Any], *, exported: bool) -> None:
        """Also that height and width are of whole tokens, which the pipeline leaves to chance."""
        super().check_media(arguments, exported=exported)
        self._check_pixels(arguments)

    def check_frames(self, frames: int) -> None:
        """Also that a video has whole tokens: latents are padded to them from text alone."""
        super().check_frames(frames)
        if ((frames - 1) // self.vae_frames + 1) % self.patch_frames:
            period = self.vae_frames * self.patch_frames
            rest = period - self.vae_frames + 1
            raise InvalidInputError(
                f"frames={frames} of a video must be {period}k + {rest} for {self.name}, such as "
                f"{frames - self.vae_frames} or {frames + self.vae_frames}"
            )

    def prepare(self, transformer: nn.Module, size: VideoSize) -> None:
        """Make a position table, float64 in diffusers, a buffer in the model's dtype."""
        if not self.one_size:
            return
        known = as_transformer(transformer)
        embed = known.patch_embed
        if not self.learned:
            frames, height, width = self._latent_size(size)
            embed.sample_height, embed.sample_width = height, width
            embed.sample_frames = (frames - 1) * self.vae_frames + 1
            table = embed._get_positional_embeddings(height, width, embed.sample_frames)
            embed.pos_embedding = table
        embed.pos_embedding = embed.pos_embedding.to(known.device, known.dtype)

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


_ROTARY = {"use_rotary_positional_embeddings": True}
_FULL_5B = {**_ROTARY, "num_layers": 42, "num_attention_heads": 48}
_PATCH_1_5 = {**_ROTARY, "patch_size_t": 2, "patch_bias": False}
_FULL_1_5 = {
    **_FULL_5B,
    **_PATCH_1_5,
    "sample_height": 300,
    "sample_width": 300,
    "sample_frames": 81,
}
_CONDITIONED = {"in_channels": 32}
_LEARNED = {**_CONDITIONED, "use_learned_positional_embeddings": True}
_480P = {"sample_height": 60, "sample_width": 90, "sample_frames": 49}
_SIZE = VideoSize(49, 480, 720)
_SIZE_1_5 = VideoSize(81, 768, 1360)
_FROM_IMAGE = ("CogVideoXImageToVideoPipeline",)

COGVIDEOX_2B = CogVideoX(
    "cogvideox-2b",
    full={"num_layers": 30, "num_attention_heads": 30},
    tiny={},
    defaults=GenerationDefaults(_SIZE, 50, 6.0, torch.float16, 8),
)
COGVIDEOX_5B = CogVideoX(
    "cogvideox-5b",
    aliases=("cogvideox",),
    full=_FULL_5B,
    tiny=_ROTARY,
    defaults=GenerationDefaults(_SIZE, 50, 6.0, torch.bfloat16, 8),
)
COGVIDEOX_1_5_5B = CogVideoX(
    "cogvideox1.5-5b",
    aliases=("cogvideox1.5",),
    full=_FULL_1_5,
    tiny=_PATCH_1_5,
    defaults=GenerationDefaults(_SIZE_1_5, 50, 6.0, torch.bfloat16, 16),
)
COGVIDEOX_5B_I2V = CogVideoX(
    "cogvideox-5b-i2v",
    full={**_FULL_5B, **_LEARNED, **_480P},
    tiny={**_ROTARY, **_LEARNED},
    defaults=GenerationDefaults(_SIZE, 50, 6.0, torch.bfloat16, 8),
    pipelines=_FROM_IMAGE,
)
COGVIDEOX_1_5_5B_I2V = CogVideoX(
    "cogvideox1.5-5b-i2v",
    full={**_FULL_1_5, **_CONDITIONED, "ofs_embed_dim": 512},
    tiny={**_PATCH_1_5, **_CONDITIONED, "ofs_embed_dim": _TINY["time_embed_dim"]},
    defaults=GenerationDefaults(_SIZE_1_5, 50, 6.0, torch.bfloat16, 16),
    pipelines=_FROM_IMAGE,
)
COGVIDEOX_FUN_5B_CONTROL = CogVideoX(
    "cogvideox-fun-5b-control",
    full={**_FULL_5B, **_CONDITIONED},
    tiny={**_ROTARY, **_CONDITIONED},
    defaults=GenerationDefaults(_SIZE, 50, 6.0, torch.bfloat16, 8),
    pipelines=("CogVideoXFunControlPipeline",),
)
