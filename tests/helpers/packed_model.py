"""A model of packed tokens, whose transformer is told its grid as three numbers (as LTX is)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainfusion_trt.models import AttentionLayout, GenerationDefaults, VideoModel, VideoSize
from rainfusion_trt.models.examples import constant
from rainfusion_trt.models.inputs import GraphInput
from rainfusion_trt.models.layout import token_grid

NUMBERS = ("num_frames", "height", "width")


class PackedTransformer(nn.Module):
    """One attention over [B, S, C] tokens, with positions from the numbers."""

    def __init__(self, in_channels: int = 8, num_layers: int = 1) -> None:
        super().__init__()
        self.config = {"in_channels": in_channels, "num_layers": num_layers}
        self.heads = nn.Linear(in_channels, 3 * 128)
        self.out = nn.Linear(128, in_channels)

    @property
    def dtype(self) -> torch.dtype:
        return self.heads.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.heads.weight.device

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        num_frames: int,
        height: int,
        width: int,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        axes = [torch.arange(n, device=self.device) / n for n in (num_frames, height, width)]
        t, h, w = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
        places = (t + 2 * h + 3 * w).flatten()[None, :, None]
        x = self.heads(hidden_states + places + timestep[:, None, None])
        q, k, v = (y.unflatten(-1, (2, 64)).transpose(1, 2) for y in x.chunk(3, dim=-1))
        x = F.scaled_dot_product_attention(q, k, v)
        return (self.out(x.transpose(1, 2).flatten(2)),)


class Packed(VideoModel):
    """The model's adapter: one input has the grid's shape, made from numbers and back."""

    name = "packed"
    text = "none"
    transformer_class = "PackedTransformer"
    pipeline_class = "PackedPipeline"
    vae_frames, vae_pixels, patch_pixels = 8, 32, 1
    distinctive = ("in_channels",)
    configs = {"full": {"in_channels": 8, "num_layers": 1}}
    defaults = GenerationDefaults(VideoSize(25, 96, 128), 4, 3.0, torch.float32, 24)
    inputs = (
        GraphInput("hidden_states", ("batch", "video_tokens", "in_channels")),
        GraphInput("timestep", ("batch",), torch.float32, constant(0.5)),
        GraphInput("grid", ("grid_frames", "grid_height", "grid_width"), example=constant(0.0)),
    )

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return config["in_channels"] == 8

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        kwargs = super().forward_kwargs(graph_inputs)
        kwargs.update(zip(NUMBERS, kwargs.pop("grid").shape, strict=True))
        return kwargs

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        return super().graph_inputs({**forward_kwargs, "grid": self._grid(forward_kwargs)})

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        return AttentionLayout(grid=self._grid(forward_kwargs), text="none")

    def _grid(self, forward_kwargs: Mapping[str, Any]) -> Tensor:
        return token_grid([forward_kwargs[n] for n in NUMBERS], forward_kwargs["hidden_states"])
