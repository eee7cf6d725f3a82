"""Attention whose precision the length of an input says, in each call anew: graphs of 8 bits.

In PyTorch a call has its precision as any other setting; at export this is a node with an input
more, `bits`. A length, since TensorRT reads lengths on the host, where the kernel is chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export.source import GraphSource
from rainfusion_trt.graph_file import BITS, BITS_AXIS, BITS_INPUT
from rainfusion_trt.operator.arguments import check_precision, grid_tensor, sparsity_tensor
from rainfusion_trt.operator.ops import ARGUMENTS, custom_operator
from rainfusion_trt.operator.settings import AttentionSettings

_PRECISIONS = {bits: precision for precision, bits in BITS.items()}


def attention_of_bits(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Tensor,
    *,
    bits: Tensor,
    parallel: bool,
    sparsity: Tensor,
    kv_len: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """Attention [B, N, S, D] in the precision that `bits` is long: 8 or 16.

    Parameters
    ----------
    bits
        [8] or [16]; only its shape is read.
    parallel
        Whether the tokens are those of one of several GPUs.
    q, k, v, grid, sparsity, kv_len, settings
        As `rainfusion_attention`.

    Raises
    ------
    UnsupportedError
        There are no 8 bits for this head size.
    """
    found = AttentionSettings(**settings)
    check_precision(found.precision, q.shape[3])
    return torch.ops.rainfusion.attention_of_bits(
        *(q, k, v, grid_tensor(grid, q), sparsity_tensor(sparsity, q), kv_len),
        *(*found.flat(), bits, parallel),
    )


@custom_operator(
    "rainfusion::attention_of_bits",
    schema=f"{ARGUMENTS.removesuffix(')')}, Tensor bits, bool parallel) -> Tensor",
)
def _attention(q: Tensor, *arguments: Any) -> Tensor:
    *inputs, bits, parallel = arguments
    tensors, flat = inputs[:5], inputs[5:]
    if bits.shape[0] not in _PRECISIONS:
        raise InvalidInputError(f"bits is {bits.shape[0]} long; it must be 8 or 16")
    settings = AttentionSettings.from_flat(*flat).replace(precision=_PRECISIONS[bits.shape[0]])
    name = "shared_attention" if parallel else "attention"
    return getattr(torch.ops.rainfusion, name)(q, *tensors, *settings.flat())


@_attention.register_fake
def _attention_fake(q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q)


def with_bits(source: GraphSource) -> GraphSource:
    """A source whose graph has the input `bits`, in the example 16 long."""

    def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return source.arguments({n: t for n, t in inputs.items() if n != BITS_INPUT})

    device = next(source.module.parameters()).device
    bits = torch.zeros(BITS["16bit"], dtype=torch.float32, device=device)
    return dataclasses.replace(
        source,
        inputs={**source.inputs, BITS_INPUT: bits},
        axes={**source.axes, BITS_INPUT: {0: BITS_AXIS}},
        arguments=arguments,
    )
