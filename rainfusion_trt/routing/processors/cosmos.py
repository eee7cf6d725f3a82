"""Cosmos-Predict 2.5."""

from __future__ import annotations

from typing import Any

from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from rainfusion_trt.routing.processors.base import Pair, RoutedProcessor


class RoutedCosmos(RoutedProcessor):
    """``CosmosAttnProcessor2_0`` of a self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Pair | None = None,
    ) -> Tensor:
        query, key, value = (
            p(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for p in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (
                apply_rotary_emb(x, image_rotary_emb, use_real=True, use_real_unbind_dim=-2)
                for x in (query, key)
            )
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        output = self.attention(query, key, value, attention_mask)
        output = output.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](output))
