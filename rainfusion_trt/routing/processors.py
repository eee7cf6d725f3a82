"""Attention processors of diffusers with RainFusion attention in the place of theirs.

Each computes q, k and v as the diffusers processor whose name it has, line by line in the same
order, so that a sparsity of 0 gives what diffusers gives. They differ in three points: attention is
the operator, its mask is a length, and text and video stay where they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb, apply_rotary_emb_allegro
from torch import Tensor, nn

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.routing.parallel import parallel_attention
from rainfusion_trt.routing.sequence import sequence_attention

if TYPE_CHECKING:
    from rainfusion_trt.routing.state import Routing

Pair = tuple[Tensor, Tensor]


class RoutedProcessor:
    """The processor of one self-attention.

    Parameters
    ----------
    original
        The diffusers processor that it stands for.
    routing : Routing
        Shared by those of a transformer.
    name : str
        Of the attention, for errors.

    Attributes
    ----------
    ran : bool
        Whether attention ran in the latest forward. Only ever written in a forward: where it were
        read, torch.compile would make one graph for each value.
    dense : bool
        Whether attention is to be dense, by the backend that the user gave this attention.
    exact : bool
        Whether its sparsity is 0 in every step, as `Routing.dense_layers` says.
    """

    def __init__(self, original: Any, routing: Routing, name: str) -> None:
        self.original = original
        self.routing = routing
        self.name = name
        self.ran = False
        self.dense = False
        self.exact = False

    # Diffusers writes and reads these two by name. They stay with the original, which is put back.

    @property
    def _attention_backend(self) -> Any:
        return getattr(self.original, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, value: Any) -> None:
        self.original._attention_backend = value

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.original, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, value: Any) -> None:
        self.original._parallel_config = value

    def backend_name(self) -> str:
        """Diffusers' name of the backend that this attention would have without RainFusion."""
        backend = self._attention_backend
        return "native" if backend is None else getattr(backend, "value", backend)

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attention over the whole sequence.

        Parameters
        ----------
        query, key, value
            [B, S, N, D].
        mask
            bool, [B, 1, 1, S]: the tokens that are none of the padding at the end.

        Returns
        -------
        Tensor
            [B, S, N, D].
        """
        self.ran = True
        if self.dense:
            return dispatch_attention_fn(
                query,
                key,
                value,
                attn_mask=mask,
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
        tokens = self.routing.running_tokens()
        if mask is not None and not (tokens.padded and mask.shape[1:-1] == (1, 1)):
            raise UnsupportedError(
                f"{self.name} has an attention mask of shape {tuple(mask.shape)}; RainFusion has "
                f"only lengths in the place of masks, and {self.routing.model.name} has "
                f"{'padding at the end' if tokens.padded else 'none'}: leave the mask out"
            )
        parallel = self._parallel_config
        if parallel is not None and parallel.context_parallel_config is not None:
            return parallel_attention(
                self.routing, self.name, query, key, value, mask, parallel, exact=self.exact
            )
        return sequence_attention(
            self.routing, self.name, query, key, value, mask, exact=self.exact
        )


class RoutedWan(RoutedProcessor):
    """``WanAttnProcessor`` of a self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Pair | None = None,
    ) -> Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = (p(hidden_states) for p in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        if rotary_emb is not None:
            query, key = (_wan_rotary(x, *rotary_emb) for x in (query, key))
        output = self.attention(query, key, value, attention_mask)
        output = output.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](output))


def _wan_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out.type_as(x)


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
            for x in (query, key):
                x[:, text:] = apply_rotary_emb(x[:, text:], image_rotary_emb, sequence_dim=1)
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
            query, key = (
                apply_rotary_emb_allegro(x, image_rotary_emb[0], image_rotary_emb[1])
                for x in (query, key)
            )
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        output = self.attention(query, key, value, attention_mask)
        output = output.flatten(2, 3).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](output))


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
            query, key = (_rotated(x, image_rotary_emb, end) for x in (query, key))
        if not one_stream:
            query, key, value = _with_text(attn, (query, key, value), encoder_hidden_states)
        output = self.attention(query, key, value, attention_mask)
        output = output.flatten(2, 3).to(query.dtype)
        return _two_streams(attn, output, text)


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
            query, key = (_rotated(x, image_rotary_emb, x.shape[1]) for x in (query, key))
        query, key, value = _with_text(attn, (query, key, value), encoder_hidden_states)
        mask = None
        if attention_mask is not None:  # of the text
            video = query.shape[1] - attention_mask.shape[1]
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


_ROUTED: dict[str, type[RoutedProcessor]] = {
    "WanAttnProcessor": RoutedWan,
    "CogVideoXAttnProcessor2_0": RoutedCogVideoX,
    "FusedCogVideoXAttnProcessor2_0": RoutedFusedCogVideoX,
    "AllegroAttnProcessor2_0": RoutedAllegro,
    "HunyuanVideoAttnProcessor2_0": RoutedHunyuanVideo,
    "HunyuanVideo15AttnProcessor2_0": RoutedHunyuanVideo15,
}


def routed_class(processor: object) -> type[RoutedProcessor] | None:
    """Ours for a processor of diffusers; None for one that we know nothing of."""
    kind = type(processor)
    ours = _ROUTED.get(kind.__name__)
    return ours if kind.__module__.startswith("diffusers.") else None
