"""Attention of the models that are timed, at their standard sizes, and heads of known kinds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rainfusion_trt.operator.geometry import Kind, TextPlace, TokenLayout
from rainfusion_trt.testing import synthetic_heads

MIXED, RANDOM = "mixed", "random"
HEADS = (MIXED, "spatial", "temporal", "textural", RANDOM)
_THIRDS = (Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL)


@dataclass(frozen=True)
class Shape:
    """One model's attention."""

    batch: int
    heads: int
    head_size: int
    grid: tuple[int, int, int]
    text_tokens: int
    text: TextPlace

    def layout(self, sink_frames: int = 1) -> TokenLayout:
        tokens = math.prod(self.grid) + self.text_tokens
        return TokenLayout(self.grid, tokens, self.text, sink_frames)

    @property
    def dense_work(self) -> int:
        """Operations of dense attention."""
        return 4 * self.layout().tokens ** 2 * self.head_size * self.heads * self.batch


SHAPES = {
    "cogvideox-5b": Shape(2, 48, 64, (13, 30, 45), 226, "first"),
    "opensoraplan-720p": Shape(1, 24, 96, (24, 45, 80), 0, "none"),
    "hunyuanvideo-720p": Shape(1, 24, 128, (33, 45, 80), 256, "last"),
    "wan2.1-14b-480p": Shape(1, 40, 128, (21, 30, 52), 0, "none"),
    "wan2.1-14b-720p": Shape(1, 40, 128, (21, 45, 80), 0, "none"),
}


def kinds_of(shape: Shape, heads: str) -> list[Kind]:
    """Kinds of the heads of one batch element: a third of each if "mixed", else all alike.

    Random lists are drawn from heads without a pattern, which are textural ones.
    """
    if heads == MIXED:
        return [_THIRDS[h % 3] for h in range(shape.heads)]
    return [Kind.TEXTURAL if heads == RANDOM else Kind[heads.upper()]] * shape.heads


def inputs_of(
    shape: Shape, heads: str, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, N, S, D] of heads of these kinds."""
    kinds = [kinds_of(shape, heads)] * shape.batch
    return synthetic_heads(shape.layout(), kinds, shape.head_size, dtype=dtype, device=device)
