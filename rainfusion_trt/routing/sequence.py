"""The operator on q, k and v as diffusers has them, over the whole sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.routing.autocast import under_autocast

if TYPE_CHECKING:
    from rainfusion_trt.routing.state import Routing


def sequence_attention(
    routing: Routing,
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None = None,
    *,
    exact: bool = False,
    heads: int | None = None,
) -> Tensor:
    """RainFusion attention of one self-attention.

    Parameters
    ----------
    routing : Routing
        Of the transformer whose forward runs.
    name : str
        Of the attention, for errors.
    query, key, value
        [B, S, N, D].
    mask
        bool, [B, 1, 1, S], True for the tokens before the padding at the end.
    scale
        Of the softmax, default 1 / sqrt(D).
    exact
        Whether the sparsity is 0, whatever that of the forward is.
    heads
        Of this attention on this device, where q, k and v have but a part of them.

    Returns
    -------
    Tensor
        [B, S, N, D].
    """
    tokens = routing.running_tokens()
    if query.shape[1] != tokens.total() or key.shape[1] != tokens.total():
        raise RainFusionError(
            f"{name} attends from {query.shape[1]} to {key.shape[1]} tokens, and a clip of "
            f"{tuple(tokens.grid.shape)} tokens with {tokens.text_tokens} of text has "
            f"{tokens.total()}: this transformer does not work like "
            f"{routing.model.name}; choose model= or grid= by how it patches its latents"
        )
    # By the mask, and not by the masks of the forward: a cache may run half a batch, and a
    # backward pass runs a checkpointed block when the forward is long over.
    kv_len = None if mask is None else mask.flatten(1).sum(1, dtype=torch.int32)
    settings = routing.settings.replace(text=tokens.text, scale=scale or 0.0)
    sparsity = routing.sparsity_tensor.to(query.device)
    if exact:
        sparsity = torch.zeros_like(sparsity)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grid = q.new_empty(1).expand(tokens.grid.shape)
        arguments = (q, k, v, grid, sparsity, kv_len, *settings.flat())
        if routing.meter is None:
            return torch.ops.rainfusion.attention(*arguments)
        output, density = torch.ops.rainfusion.attention_measured(*arguments)
        routing.meter.add(density, heads)
        return output

    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return under_autocast(attend, query, key, value).transpose(1, 2)
