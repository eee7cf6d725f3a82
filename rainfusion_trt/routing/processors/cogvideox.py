"""CogVideoX."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from rainfusion_trt.routing.processors.base import Pair, RoutedProcessor


class RoutedCogVideoX(RoutedProcessor):
    """``CogVideoXAttnProcessor2_0``: text first, rotary embeddings on the video alone."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Pair | None = None,
    ) -> Pair:
        text = encoder_hidden_states.size(1)
        hidden_states = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            x.unflatten(2, (attn.heads, -1)) for x in self._projected(attn, hidden_states)
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if image_rotary_emb is not None:
            rotary = self.rotary(image_rotary_emb)
            for x in (query, key):
                x[:, text:] = apply_rotary_emb(x[:, text:], rotary, sequence_dim=1)
        output = self.attention(query, key, value, attention_mask).flatten(2, 3)
        output = attn.to_out[1](attn.to_out[0](output))
        encoder_hidden_states, hidden_states = output.split([text, output.size(1) - text], dim=1)
        return hidden_states, encoder_hidden_states

    def _projected(self, attn: Any, tokens: Tensor) -> tuple[Tensor, ...]:
        return attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)


class RoutedFusedCogVideoX(RoutedCogVideoX):
    """``FusedCogVideoXAttnProcessor2_0``, which `fuse_qkv_projections` sets."""

    def _projected(self, attn: Any, tokens: Tensor) -> tuple[Tensor, ...]:
        return attn.to_qkv(tokens).chunk(3, dim=-1)
