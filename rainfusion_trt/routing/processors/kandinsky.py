"""Kandinsky 5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.routing.processors.base import RoutedProcessor


class RoutedKandinsky5(RoutedProcessor):
    """``Kandinsky5AttnProcessor`` of a self-attention, without NABLA."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        sparse_params: Any = None,
    ) -> Tensor:
        if sparse_params is not None:  # `Kandinsky5.layout` says why
            raise UnsupportedError(
                f"{self.name} is called with sparse_params, which RainFusion does not take"
            )
        query, key, value = (
            p(hidden_states).unflatten(-1, (attn.num_heads, -1))
            for p in (attn.to_query, attn.to_key, attn.to_value)
        )
        query = attn.query_norm(query.float()).type_as(query)
        key = attn.key_norm(key.float()).type_as(key)
        if rotary_emb is not None:
            query, key = (_rotated(x, rotary_emb) for x in (query, key))
        return attn.out_layer(self.attention(query, key, value).flatten(-2, -1))


def _rotated(x: Tensor, rotations: Tensor) -> Tensor:
    """Pairs of channels turned by matrices of 2 x 2, rounded to bfloat16 whatever their dtype."""
    pairs = x.reshape(*x.shape[:-1], -1, 1, 2).to(torch.float32)
    turned = (rotations * pairs).sum(dim=-1)
    return turned.reshape(*x.shape).to(torch.bfloat16).type_as(x)
