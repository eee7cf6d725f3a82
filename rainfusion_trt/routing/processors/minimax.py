"""MiniMax-H3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.routing.processors.base import Pair, RoutedProcessor


class RoutedMiniMaxH3(RoutedProcessor):
    """``MiniMaxH3AttnProcessor``: one packed sequence, the generated video last."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        rotary_emb: Pair | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = (p(hidden_states) for p in (attn.to_q, attn.to_k, attn.to_v))
        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if rotary_emb is not None:
            query, key = (_rotated(x, *rotary_emb) for x in (query, key))
        output = self.attention(query, key, value, attention_mask)
        output = output.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](output))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` [B, S, N, D] with its first channels turned by tables [S, R], in halves of R."""
    turning, still = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
    cos, sin = (table.to(x.dtype)[None, :, None] for table in (cos, sin))
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, still), dim=-1)
