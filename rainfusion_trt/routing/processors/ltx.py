"""LTX-Video and LTX-2."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx import apply_rotary_emb
from diffusers.models.transformers.transformer_ltx2 import (
    apply_interleaved_rotary_emb,
    apply_split_rotary_emb,
)
from torch import Tensor

from rainfusion_trt.routing.processors.base import Pair, RoutedProcessor


class RoutedLtx(RoutedProcessor):
    """``LTXVideoAttnProcessor`` of a self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Pair | None = None,
    ) -> Tensor:
        mask = _prepared(attn, hidden_states, attention_mask)
        query, key, value = (p(hidden_states) for p in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(x, image_rotary_emb) for x in (query, key))
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        output = self.attention(query, key, value, mask)
        output = output.flatten(2, 3).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](output))


class RoutedLtx2(RoutedProcessor):
    """``LTX2AudioVideoAttnProcessor`` of a self-attention, with gates where the model has them."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: Pair | None = None,
        key_rotary_emb: Pair | None = None,
    ) -> Tensor:
        value = attn.to_v(hidden_states)
        output = self._attended(
            attn, hidden_states, value, attention_mask, query_rotary_emb, key_rotary_emb
        )
        return _gated(attn, hidden_states, output)

    def _attended(
        self,
        attn: Any,
        hidden_states: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        query_rotary_emb: Pair | None,
        key_rotary_emb: Pair | None,
    ) -> Tensor:
        """[B, S, C]: attention before gates and projection."""
        mask = _prepared(attn, hidden_states, attention_mask)
        query = attn.norm_q(attn.to_q(hidden_states))
        key = attn.norm_k(attn.to_k(hidden_states))
        if query_rotary_emb is not None:
            rotate = {
                "interleaved": apply_interleaved_rotary_emb,
                "split": apply_split_rotary_emb,
            }[attn.rope_type]
            query = rotate(query, query_rotary_emb)
            key = rotate(key, query_rotary_emb if key_rotary_emb is None else key_rotary_emb)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        output = self.attention(query, key, value, mask)
        return output.flatten(2, 3).to(query.dtype)


class RoutedLtx2Perturbed(RoutedLtx2):
    """``LTX2PerturbedAttnProcessor``: guidance may put the values in the place of attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: Pair | None = None,
        key_rotary_emb: Pair | None = None,
        perturbation_mask: Tensor | None = None,
        all_perturbed: bool | Tensor | None = None,
    ) -> Tensor:
        value = attn.to_v(hidden_states)
        if all_perturbed is None:
            all_perturbed = perturbation_mask is not None and bool((perturbation_mask == 0).all())
        if all_perturbed:
            self.left_out = True
            return _gated(attn, hidden_states, value)
        output = self._attended(
            attn, hidden_states, value, attention_mask, query_rotary_emb, key_rotary_emb
        )
        if perturbation_mask is not None:
            output = torch.lerp(value, output, perturbation_mask)
        return _gated(attn, hidden_states, output)


def _prepared(attn: Any, hidden_states: Tensor, mask: Tensor | None) -> Tensor | None:
    """A mask as diffusers' attention takes it, [B, N, 1 or S, S]."""
    if mask is None:
        return None
    batch, tokens, _ = hidden_states.shape
    mask = attn.prepare_attention_mask(mask, tokens, batch)
    return mask.view(batch, attn.heads, -1, mask.shape[-1])


def _gated(attn: Any, hidden_states: Tensor, output: Tensor) -> Tensor:
    """The output [B, S, C] through its gates, one a head and token, and its projection."""
    if attn.to_gate_logits is not None:
        gates = 2.0 * torch.sigmoid(attn.to_gate_logits(hidden_states))
        output = (output.unflatten(2, (attn.heads, -1)) * gates.unsqueeze(-1)).flatten(2, 3)
    return attn.to_out[1](attn.to_out[0](output))
