"""The gradient of the operator, for training with attention routed through it.

At a sparsity of 0 it is that of dense attention. Else the keys that a head chose count as fixed: on
the CPU the reference is differentiated, and the kernels have no backward, which is an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.settings import AttentionSettings

# An operator of its own, whose value on the device decides what runs: a graph that torch.compile
# makes of a training step cannot hold the decision.
_ARGUMENTS = (
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor grid, Tensor sparsity, Tensor? kv_len, "
    "str text, str method, float alpha, SymInt sink_frames, float scale, str precision, "
    "SymInt last_sink_frames, int[] exact_frames)"
)


@torch.library.custom_op(
    "rainfusion::attention_backward",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"{_ARGUMENTS} -> (Tensor, Tensor, Tensor)",
)
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Tensor,
    sparsity: Tensor,
    kv_len: Tensor | None,
    *flat: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    settings = AttentionSettings.from_flat(*flat)
    if settings.precision != "16bit":
        raise UnsupportedError(
            f"precision={settings.precision!r} has no backward pass; train with '16bit', or run "
            "under torch.no_grad()"
        )
    is_sparse = sparsity.item() > 0
    if is_sparse and q.is_cuda:
        raise UnsupportedError(
            f"sparsity={sparsity.item():.4g}: the kernels of RainFusion attention have no backward "
            "pass; set the sparsity to 0 for training, or run under torch.no_grad()"
        )
    with _recorded():
        leaves = tuple(x.detach().requires_grad_() for x in (q, k, v))
        q, k, v = leaves
        if is_sparse:
            output = reference.attention(
                q, k, v, tuple(grid.shape), sparsity, kv_len, settings, return_lse=False
            )[0]
        else:
            output = F.scaled_dot_product_attention(
                q, k, v, _mask(q, kv_len), scale=settings.softmax_scale(q.shape[-1])
            )
        grads = torch.autograd.grad(output, leaves, grad)
    # A custom operator must not return one of its inputs, nor one tensor twice.
    dq, dk, dv = (g.clone(memory_format=torch.contiguous_format) for g in grads)
    return dq, dk, dv


@_attention_backward.register_fake
def _attention_backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


def _mask(q: Tensor, kv_len: Tensor | None) -> Tensor | None:
    if kv_len is None:
        return None
    return (torch.arange(q.shape[2], device=q.device) < kv_len[:, None])[:, None, None]


@contextlib.contextmanager
def _recorded() -> Iterator[None]:
    """Autograd on, which is out of reach inside an operator."""
    included = torch._C._dispatch_tls_local_include_set()
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "AutogradOther", "ADInplaceOrView"):
        excluded = excluded - torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    with (
        torch._C._ForceDispatchKeyGuard(included, excluded),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the backward pass needs."""
    q, k, v, grid, sparsity, kv_len, *flat = inputs
    ctx.save_for_backward(q, k, v, grid, sparsity, kv_len)
    ctx.flat = flat


def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients of q, k and v, and none of the other arguments."""
    grads = torch.ops.rainfusion.attention_backward(grad, *ctx.saved_tensors, *ctx.flat)
    return (*grads, *(None for _ in range(3 + len(ctx.flat))))
