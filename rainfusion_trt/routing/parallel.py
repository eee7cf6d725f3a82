"""RainFusion attention under diffusers' context parallelism (``enable_parallelism``).

Every device has a part of the tokens. Ulysses exchanges them for a part of the heads before
attention and back after it, so that the operator sees the whole sequence of some heads, and heads
are chosen one by one anyway. Ring attention would need parts of the keys, which are no clip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers.models.attention_dispatch import (
    _native_attention_backward_op,
    _templated_context_parallel_attention,
)
from torch import Tensor

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.routing.sequence import sequence_attention

if TYPE_CHECKING:
    from rainfusion_trt.routing.state import Routing


def parallel_attention(
    routing: Routing,
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    parallel: Any,
    *,
    exact: bool = False,
) -> Tensor:
    """As `sequence_attention`, for this device's part of the tokens.

    Raises
    ------
    UnsupportedError
        Ring attention, or text in the sequence.
    """
    tokens = routing.running_tokens()
    if parallel.context_parallel_config.ring_degree > 1:
        raise UnsupportedError(
            f"{name}: ring attention gives each device a part of the keys, and RainFusion chooses "
            "among all of them; use ContextParallelConfig(ulysses_degree=...) alone"
        )
    if tokens.text_tokens or mask is not None:
        raise UnsupportedError(
            f"{name}: context parallelism cuts video and text of {routing.model.name} into parts, "
            "and put together they are in another order than RainFusion knows; run this model on "
            "one device"
        )

    def forward_op(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        return_lse: bool = False,
        _save_ctx: bool = True,
        _parallel_config: Any = None,
    ) -> Tensor:
        if _save_ctx:  # for the backward of dense attention
            ctx.save_for_backward(query, key, value)
            ctx.attn_mask, ctx.dropout_p, ctx.is_causal = attn_mask, dropout_p, is_causal
            ctx.scale, ctx.enable_gqa = scale, enable_gqa
        return sequence_attention(routing, name, query, key, value, None, scale, exact=exact)

    return _templated_context_parallel_attention(
        query,
        key,
        value,
        forward_op=forward_op,
        backward_op=_native_attention_backward_op,
        _parallel_config=parallel,
    )
