"""``rainfusion::attention_measured``: the operator, and the share of the pairs that it computed.

The kernels count while they plan, without waiting for the host. It has no ONNX node: an engine does
not report what it leaves out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.operator import cuda_ops, gradient, reference
from rainfusion_trt.operator.arguments import check_call
from rainfusion_trt.operator.ops import ARGUMENTS, custom_operator
from rainfusion_trt.operator.settings import AttentionSettings


@custom_operator("rainfusion::attention_measured", schema=f"{ARGUMENTS} -> (Tensor, Tensor)")
def _attention_measured(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Tensor,
    sparsity: Tensor,
    kv_len: Tensor | None,
    *flat: Any,
) -> tuple[Tensor, Tensor]:
    settings = AttentionSettings.from_flat(*flat)
    check_call(q, (k, v), grid, sparsity, kv_len, settings)
    sizes = tuple(grid.shape)
    if q.is_cuda:
        out, plan = cuda_ops.planned_attention(q, k, v, sizes, sparsity, kv_len, settings)
    else:
        out, _ = reference.attention(q, k, v, sizes, sparsity, kv_len, settings, return_lse=False)
        plan = reference.classify(q, k, sizes, sparsity, kv_len, settings)
    return out, plan.density


@_attention_measured.register_fake
def _attention_measured_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    gradient.setup(ctx, inputs, output[0])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _density: Tensor | None) -> tuple[Any, ...]:
    return gradient.backward(ctx, grad)


_attention_measured.register_autograd(_backward, setup_context=_setup)
