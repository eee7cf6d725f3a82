"""HunyuanVideo and HunyuanVideo-1.5."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from rainfusion_trt.routing.processors.base import Pair, RoutedProcessor


class RoutedHunyuanVideo(RoutedProcessor):
    """``HunyuanVideoAttnProcessor2_0``: video and text in two streams or in one, text last."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Pair | None = None,
    ) -> Pair:
        one_stream = attn.add_q_proj is None
        text = encoder_hidden_states.shape[1]
        if one_stream:
            hidden_states = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        query, key, value = _normed(
            attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k)
        )
        if image_rotary_emb is not None:
            end = -text if one_stream else query.shape[1]
            rotary = self.rotary(image_rotary_emb)
            query, key = (_rotated(x, rotary, end) for x in (query, key))
        if not one_stream:
            query, key, value = _with_text(attn, (query, key, value), encoder_hidden_states)
        output = self.attention(query, key, value, self._whole(attention_mask))
        output = output.flatten(2, 3).to(query.dtype)
        return _two_streams(attn, output, text)

    def _whole(self, mask: Tensor | None) -> Tensor | None:
        """A mask [B, 1, 1, S] over all tokens.

        The transformer makes it of the video tokens that it has and the whole text: where devices
        have cut the former before that, those of the others are missing. Text comes last.
        """
        if mask is None:
            return None
        missing = self.routing.running_tokens().total() - mask.shape[-1]
        return nn.functional.pad(mask, (missing, 0), value=True)


class RoutedHunyuanVideo15(RoutedProcessor):
    """``HunyuanVideo15AttnProcessor2_0``, without its mask of S x S."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Pair | None = None,
    ) -> Pair:
        query, key, value = _normed(
            attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k)
        )
        if image_rotary_emb is not None:
            rotary = self.rotary(image_rotary_emb)
            query, key = (_rotated(x, rotary, x.shape[1]) for x in (query, key))
        query, key, value = _with_text(attn, (query, key, value), encoder_hidden_states)
        mask = None
        if attention_mask is not None:  # of the text, the whole of it on every device
            video = self.routing.running_tokens().grid.numel()
            mask = nn.functional.pad(attention_mask, (video, 0), value=True)
            mask = mask.bool()[:, None, None]
        output = self.attention(query, key, value, mask)
        output = output.flatten(2, 3).to(query.dtype)
        return _two_streams(attn, output, encoder_hidden_states.shape[1])


def _normed(
    attn: Any,
    tokens: Tensor,
    projections: tuple[nn.Module, nn.Module, nn.Module],
    norms: tuple[nn.Module | None, nn.Module | None],
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of some tokens as [B, S, N, D], q and k normalised where there are norms."""
    query, key, value = (p(tokens).unflatten(2, (attn.heads, -1)) for p in projections)
    query = query if norms[0] is None else norms[0](query)
    key = key if norms[1] is None else norms[1](key)
    return query, key, value


def _rotated(x: Tensor, rotary: Pair, end: int) -> Tensor:
    """`x` [B, S, N, D] with its first `end` tokens rotated."""
    if end == x.shape[1]:
        return apply_rotary_emb(x, rotary, sequence_dim=1)
    return torch.cat([apply_rotary_emb(x[:, :end], rotary, sequence_dim=1), x[:, end:]], dim=1)


def _with_text(attn: Any, video: tuple[Tensor, Tensor, Tensor], text: Tensor) -> tuple[Tensor, ...]:
    """q, k and v of the video, those of the text behind them."""
    added = _normed(
        attn,
        text,
        (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
        (attn.norm_added_q, attn.norm_added_k),
    )
    return tuple(torch.cat(pair, dim=1) for pair in zip(video, added, strict=True))


def _two_streams(attn: Any, output: Tensor, text: int) -> Pair:
    """Video and text of an output, each through the projection that its stream has."""
    video, words = output[:, :-text], output[:, -text:]
    if getattr(attn, "to_out", None) is not None:
        video = attn.to_out[1](attn.to_out[0](video))
    if getattr(attn, "to_add_out", None) is not None:
        words = attn.to_add_out(words)
    return video, words
