"""Allegro and OpenSoraPlan."""

from __future__ import annotations

from typing import Any

from diffusers.models.embeddings import apply_rotary_emb_allegro
from torch import Tensor

from rainfusion_trt.routing.processors.base import RoutedProcessor


class RoutedAllegro(RoutedProcessor):
    """``AllegroAttnProcessor2_0`` of a self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        query, key, value = (
            p(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for p in (attn.to_q, attn.to_k, attn.to_v)
        )
        if image_rotary_emb is not None:
            tables, positions = image_rotary_emb
            positions = [self.part(position, 1) for position in positions]
            query, key = (apply_rotary_emb_allegro(x, tables, positions) for x in (query, key))
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        output = self.attention(query, key, value, attention_mask)
        output = output.flatten(2, 3).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](output))
