"""Kandinsky 5, video from text and images (arXiv 2511.14993; diffusers Kandinsky5T2VPipeline).

Self-attention of the visual blocks is over the video alone, the text comes in by cross-attention;
text blocks have self-attention of their own, which stays dense. Latents have their channels last.

Checkpoints for 10 seconds have ``attention_type="nabla"``: sparse attention of their own, for which
the pipeline passes `sparse_params` and the transformer orders tokens in squares of 8 x 8. Such a
call is refused, as its tokens are no raster and two kinds of sparse attention do not go together.
With ``attention_type="regular"`` the same transformer runs dense, or with RainFusion instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.base import (
    AttentionLayout,
    ConfigSize,
    GenerationDefaults,
    GraphInput,
    VideoModel,
    VideoSize,
)
from rainfusion_trt.models.examples import constant

_SELF_ATTENTION = re.compile(r"(^|\.)visual_transformer_blocks\.\d+\.(_orig_mod\.)?self_attention$")
_CHANNELS = 16
_VISUAL = {"in_visual_dim": _CHANNELS, "out_visual_dim": _CHANNELS, "visual_cond": True}
_FULL = {**_VISUAL, "in_text_dim": 3584, "in_text_dim2": 768}
_TINY = {
    **_VISUAL,
    "in_text_dim": 24,
    "in_text_dim2": 16,
    "time_dim": 32,
    "ff_dim": 96,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
}


class Kandinsky5(VideoModel):
    """A Kandinsky 5 for video, told apart by its width."""

    text = "none"
    transformer_class = "Kandinsky5Transformer3DModel"
    pipeline_class = "Kandinsky5T2VPipeline"
    other_pipelines = ("Kandinsky5I2VPipeline",)
    guidance_batch = False
    refused = {
        "sparse_params": "set attention_type to regular in the transformer's configuration",
    }
    sequences = {"text_tokens": 512}  # at most; the pipeline pads to the longest prompt
    inputs = (
        # Noise, the known latents and their mask.
        GraphInput("hidden_states", ("batch", "frames", "height", "width", 2 * _CHANNELS + 1)),
        GraphInput("encoder_hidden_states", ("batch", "text_tokens", "in_text_dim")),
        GraphInput("timestep", ("batch",), torch.float32, constant(500.0)),
        GraphInput("pooled_projections", ("batch", "in_text_dim2")),
        GraphInput("scale_factor", (3,), torch.float32, constant(2.0)),
    )
    distinctive = ("in_visual_dim", "model_dim", "axes_dims", "visual_cond")
    remedy = "only Kandinsky 5 Lite and Pro for video are supported"

    def __init__(
        self, name: str, *, full: Mapping[str, Any], tiny: Mapping[str, Any], size: VideoSize
    ) -> None:
        self.name = name
        self.configs = {"full": {**_FULL, **full}, "tiny": {**_TINY, **tiny}}
        self.defaults = GenerationDefaults(size, 50, 5.0, torch.bfloat16, 24)

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return any(
            all(_plain(config[key]) == _plain(known[key]) for key in self.distinctive)
            for known in self.configs.values()
        )

    def config(self, size: ConfigSize = "full", *, layers: int | None = None) -> dict[str, Any]:
        """Constructor arguments; `layers` is the number of visual blocks, and at most of others."""
        config = dict(self.configs[size])
        most = config["num_visual_blocks"]
        if layers is not None:
            if not 1 <= layers <= most:
                raise InvalidInputError(
                    f"layers={layers} must be between 1 and {most}, the number of visual blocks of "
                    f"{self.name} ({size})"
                )
            kinds = ("num_visual_blocks", "num_text_blocks")
            config.update({kind: min(layers, config[kind]) for kind in kinds})
        return config

    def attention_count(self, config: Mapping[str, Any]) -> int:
        return config["num_visual_blocks"]

    def head_size(self, config: Mapping[str, Any]) -> int | None:
        return sum(config.get("axes_dims", ())) or None

    def is_self_attention(self, name: str, module: nn.Module) -> bool:
        return hasattr(module, "set_processor") and _SELF_ATTENTION.search(name) is not None

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        """The base class's layout.

        Raises
        ------
        UnsupportedError
            The call is for NABLA, the network's own sparse attention.
        """
        if forward_kwargs.get("sparse_params") is not None:
            raise UnsupportedError(
                f"{self.name}: sparse_params ask for NABLA, the network's own sparse attention, "
                "which orders tokens in squares; RainFusion can only take its place: call "
                'pipe.transformer.register_to_config(attention_type="regular")'
            )
        return super().layout(transformer, forward_kwargs)

    # -- the graph ------------------------------------------------------------------------------

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """With the positions of the pipeline, which count from 0."""
        kwargs = super().forward_kwargs(graph_inputs)
        kwargs["visual_rope_pos"], kwargs["text_rope_pos"] = self._positions(kwargs)
        return kwargs

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Without positions, which have to count from 0; the scales as a tensor."""
        like = forward_kwargs["hidden_states"]
        visual, text = self._positions(forward_kwargs)
        given = (*forward_kwargs["visual_rope_pos"], forward_kwargs["text_rope_pos"])
        for mine, theirs in zip((*visual, text), given, strict=True):
            if not torch.equal(mine, torch.as_tensor(theirs, device=mine.device)):
                raise UnsupportedError(
                    f"{self.name}: positions of the call do not count from 0 to the ends of the "
                    "video and of the text, and the graph has no input for others; use "
                    "backend='torch'"
                )
        scales = forward_kwargs.get("scale_factor", (1.0, 1.0, 1.0))
        scales = torch.as_tensor(scales, dtype=torch.float32, device=like.device)
        return super().graph_inputs({**forward_kwargs, "scale_factor": scales})

    def _positions(self, kwargs: Mapping[str, Any]) -> tuple[list[Tensor], Tensor]:
        """Of frames, rows and columns of tokens, and of the text."""
        _, frames, height, width, _ = kwargs["hidden_states"].shape
        device = kwargs["hidden_states"].device
        grid = (frames, height // self.patch_pixels, width // self.patch_pixels)
        text = kwargs["encoder_hidden_states"].shape[1]
        return [torch.arange(n, device=device) for n in grid], torch.arange(text, device=device)

    def eager(
        self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, ...]:
        """The forward, whose output without a dictionary is no tuple."""
        return (transformer(**forward_kwargs, return_dict=False),)


def _plain(value: Any) -> Any:
    """A value of a configuration, of which lists come back from files as such."""
    return tuple(value) if isinstance(value, list) else value


KANDINSKY_5_LITE = Kandinsky5(
    "kandinsky5-lite",
    full={
        "time_dim": 512,
        "model_dim": 1792,
        "ff_dim": 7168,
        "num_text_blocks": 2,
        "num_visual_blocks": 32,
        "axes_dims": (16, 24, 24),
    },
    tiny={"model_dim": 128, "axes_dims": (16, 24, 24)},
    size=VideoSize(121, 512, 768),
)
KANDINSKY_5_PRO = Kandinsky5(
    "kandinsky5-pro",
    full={
        "time_dim": 1024,
        "model_dim": 4096,
        "ff_dim": 16384,
        "num_text_blocks": 4,
        "num_visual_blocks": 60,
        "axes_dims": (32, 48, 48),
    },
    tiny={"model_dim": 256, "axes_dims": (32, 48, 48)},
    size=VideoSize(121, 768, 1024),
)
