"""Operators of a graph that several GPUs share: attention, and the tokens around the blocks.

In PyTorch there is one process, whose part is the whole; several processes run the transformer
itself (docs/parallel.md). At export each operator is a node.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.arguments import grid_tensor, sparsity_tensor
from rainfusion_trt.operator.ops import ARGUMENTS, custom_operator
from rainfusion_trt.operator.settings import AttentionSettings


def shared_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Tensor,
    *,
    sparsity: Tensor,
    kv_len: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """Attention [B, N, S, D] of one GPU's tokens; as `rainfusion_attention` where it is alone."""
    flat = AttentionSettings(**settings).flat()
    return torch.ops.rainfusion.shared_attention(
        q, k, v, grid_tensor(grid, q), sparsity_tensor(sparsity, q), kv_len, *flat
    )


@custom_operator("rainfusion::shared_attention", schema=f"{ARGUMENTS} -> Tensor")
def _attention(q: Tensor, *arguments: Any) -> Tensor:
    return torch.ops.rainfusion.attention(q, *arguments)


@_attention.register_fake
def _attention_fake(q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q)


@custom_operator(
    "rainfusion::split_tokens", schema="(Tensor whole, Tensor part, int axis) -> Tensor"
)
def split_tokens(whole: Tensor, part: Tensor, axis: int) -> Tensor:
    """The tokens of one GPU, of which there are as many as `part` [n] is long."""
    _check_alone(part.shape[0], whole.shape[axis])
    return whole.clone()


@split_tokens.register_fake
def _split_fake(whole: Tensor, part: Tensor, axis: int) -> Tensor:
    shape = list(whole.shape)
    shape[axis] = part.shape[0]
    return whole.new_empty(shape)


@custom_operator(
    "rainfusion::gather_tokens",
    schema="(Tensor part, Tensor grid, SymInt tokens, int axis) -> Tensor",
)
def gather_tokens(part: Tensor, grid: Tensor, tokens: int, axis: int) -> Tensor:
    """The tokens of all GPUs, which are those of `grid` [T, H, W].

    `tokens` is their number as the graph knows it already, which saves torch from relating it to
    the grid.
    """
    _check_alone(part.shape[axis], grid.numel())
    return part.clone()


@gather_tokens.register_fake
def _gather_fake(part: Tensor, grid: Tensor, tokens: int, axis: int) -> Tensor:
    shape = list(part.shape)
    shape[axis] = tokens
    return part.new_empty(shape)


def _check_alone(part: int, whole: int) -> None:
    if part != whole:
        raise InvalidInputError(
            f"a part of {part} of {whole} tokens: in PyTorch these operators have one process, "
            "which has all of them"
        )
