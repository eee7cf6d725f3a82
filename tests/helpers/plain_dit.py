"""A small video transformer in plain torch, as somebody's own project would have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, CHANNELS, PATCH = 128, 2, 4, 2
FRAMES, ROWS, COLUMNS = 3, 8, 12  # of the latent; 3x4x6 tokens
GRID = (FRAMES, ROWS // PATCH, COLUMNS // PATCH)
TEXT_TOKENS = 7


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        def heads(values: Tensor) -> Tensor:
            return values.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        q, k, v = heads(self.to_q(x)), heads(self.to_k(context)), heads(self.to_v(context))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(out.transpose(1, 2).flatten(-2))


class PlainDiT(nn.Module):
    """`depth` blocks; the text attended to jointly, first or last, or by cross-attention."""

    def __init__(self, joint: str = "none", depth: int = 2) -> None:
        super().__init__()
        self.joint = joint
        self.patch = nn.Linear(CHANNELS * PATCH * PATCH, WIDTH)
        self.self_attention = nn.ModuleList(Attention() for _ in range(depth))
        self.cross_attention = nn.ModuleList(Attention() for _ in range(depth))
        self.out = nn.Linear(WIDTH, CHANNELS * PATCH * PATCH)

    def forward(
        self, latents: Tensor, text: Tensor, valid: Tensor | None = None, gain: float = 1.0
    ) -> Tensor:
        batch, channels, frames, rows, columns = latents.shape
        x = latents.unflatten(3, (-1, PATCH)).unflatten(5, (-1, PATCH))
        x = x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        x = self.patch(x) * gain
        video = x.shape[1]
        if self.joint == "first":
            x = torch.cat([text, x], 1)
        elif self.joint == "last":
            x = torch.cat([x, text], 1)
        mask = None
        if valid is not None:
            mask = (torch.arange(x.shape[1], device=x.device) < valid[:, None])[:, None, None]
        for own, cross in zip(self.self_attention, self.cross_attention, strict=True):
            x = x + own(x, x, mask)
            x = x + cross(x, text)
        x = x[:, -video:] if self.joint == "first" else x[:, :video]
        x = self.out(x).unflatten(1, (frames, rows // PATCH, columns // PATCH))
        x = x.unflatten(-1, (channels, PATCH, PATCH))
        return x.permute(0, 4, 1, 2, 5, 3, 6).flatten(5).flatten(3, 4)


def example(
    frames: int = FRAMES, rows: int = ROWS, columns: int = COLUMNS, batch: int = 2
) -> dict[str, Tensor]:
    """Keyword arguments of one call."""
    generator = torch.Generator().manual_seed(frames + rows)
    return {
        "latents": torch.randn(batch, CHANNELS, frames, rows, columns, generator=generator),
        "text": torch.randn(batch, TEXT_TOKENS, WIDTH, generator=generator),
    }


def make() -> tuple[nn.Module, Mapping[str, Any]]:
    """The function that ``--module plain_dit:make`` calls."""
    torch.manual_seed(0)
    return PlainDiT("last").eval(), {**example(), "gain": 0.5}


def make_nothing() -> int:
    return 3
