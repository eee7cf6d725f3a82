"""``rainfusion_attention`` and ``classify_heads``: one torch operator with three faces.

CPU tensors run the reference, CUDA tensors the kernels, and at export the operator is one node of
the graph, which ``rainfusion_export`` writes as ``rainfusion::RainFusionAttention``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import cuda_ops, reference
from .errors import InvalidInputError
from .geometry import METHODS, Method, TextPlace, TokenLayout
from .plan import HeadPlan

__all__ = ["classify_heads", "rainfusion_attention"]


def rainfusion_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int] | Tensor,
    *,
    text: TextPlace = "none",
    sparsity: float | Tensor = 0.5,
    kv_len: Tensor | None = None,
    method: Method = "rainfusion",
    alpha: float = 0.9,
    sink_frames: int = 1,
    scale: float | None = None,
) -> Tensor:
    """Attention in which every head skips what its kind does not need (arXiv 2505.21036).

    Parameters
    ----------
    q, k, v
        [B, N, S, D], one dtype: float16 or bfloat16 with D of 64, 96 or 128 on CUDA; any floating
        dtype and D on the CPU. Strided views of [B, S, N, D] are read where they lie.
    grid
        Token grid (T, H, W) after patching, or any tensor of that shape. S = T*H*W + L.
    text
        Where the L text tokens stand: "none" (L = 0), "first" or "last".
    sparsity
        s in [0, 1), 0 = dense. A float32 tensor [1] on the device of `q` is read on the device in
        every call, so that it may change under a captured CUDA graph; there, values that are out of
        range cannot be reported: 1 and more act as the largest float below 1, NaN as 0.
    kv_len
        int32 [B], tokens per batch element that are real; keys at or past it are never attended and
        the outputs of rows at or past it are unspecified but finite.
    method
        "rainfusion" (spatial, temporal, textural), "rainfusion_two_way" (no textural heads),
        "rainfusion_plus" (band chosen per head) or "rainfusion2" (best blocks by block means,
        arXiv 2512.24086).
    alpha
        Recall from which a head counts as temporal or spatial.
    sink_frames
        Leading latent frames that every token attends to and that attend to every token.
    scale
        Softmax scale, default 1 / sqrt(D).

    Returns
    -------
    Tensor
        [B, N, S, D] in the dtype of `q`. No gradient.

    Raises
    ------
    InvalidInputError
        Shapes, dtypes or arguments that do not fit together.
    UnsupportedError
        A head size, dtype or GPU without a kernel.

    Examples
    --------
    >>> q, k, v = torch.randn(3, 1, 2, 4 * 8 * 8, 64).unbind(0)
    >>> rainfusion_attention(q, k, v, (4, 8, 8), sparsity=0.5).shape
    torch.Size([1, 2, 256, 64])
    """
    return torch.ops.rainfusion.attention(
        q,
        k,
        v,
        _grid_tensor(grid, q),
        _sparsity_tensor(sparsity, q),
        kv_len,
        text,
        method,
        alpha,
        sink_frames,
        0.0 if scale is None else scale,
    )


def classify_heads(
    q: Tensor,
    k: Tensor,
    grid: Sequence[int] | Tensor,
    *,
    text: TextPlace = "none",
    sparsity: float | Tensor = 0.5,
    kv_len: Tensor | None = None,
    method: Method = "rainfusion",
    alpha: float = 0.9,
    sink_frames: int = 1,
    scale: float | None = None,
) -> HeadPlan:
    """What ARM makes of every head: its kind, the recalls behind it and the density computed.

    Parameters as :func:`rainfusion_attention`.

    Returns
    -------
    HeadPlan
        Tensors of shape [B, N] on the device of `q`.
    """
    grid = _grid_tensor(grid, q)
    sparsity = _sparsity_tensor(sparsity, q)
    arguments: dict[str, Any] = {
        "text": text,
        "sparsity": sparsity,
        "kv_len": kv_len,
        "method": method,
        "alpha": alpha,
        "sink_frames": sink_frames,
        "scale": scale,
    }
    _check(q, (k,), grid, sparsity, kv_len, text, method, alpha, sink_frames, scale or 0.0)
    return _face_of(q).classify_heads(q, k, tuple(grid.shape), **arguments)


def _grid_tensor(grid: Sequence[int] | Tensor, q: Tensor) -> Tensor:
    """A tensor of shape `grid` without storage of its own."""
    if isinstance(grid, Tensor):
        return grid
    if len(grid) != 3 or min(grid) < 1:
        raise InvalidInputError(f"grid={tuple(grid)} must be three positive sizes (T, H, W)")
    return q.new_empty(1).expand(*grid)


def _sparsity_tensor(sparsity: float | Tensor, q: Tensor) -> Tensor:
    if isinstance(sparsity, Tensor):
        return sparsity
    if not 0.0 <= sparsity < 1.0:
        raise InvalidInputError(f"sparsity={sparsity} must be in [0, 1); 0 is dense attention")
    return torch.full((1,), sparsity, dtype=torch.float32, device=q.device)


def _check(
    q: Tensor,
    others: tuple[Tensor, ...],
    grid: Tensor,
    sparsity: Tensor,
    kv_len: Tensor | None,
    text: str,
    method: str,
    alpha: float,
    sink_frames: int,
    scale: float,
) -> None:
    """Everything the host can check, before any work starts."""
    if q.dim() != 4 or 0 in q.shape:
        raise InvalidInputError(f"q has shape {tuple(q.shape)}; expected [B, N, S, D], none 0")
    for other in others:
        if other.shape != q.shape or other.dtype != q.dtype or other.device != q.device:
            raise InvalidInputError(
                f"q is {tuple(q.shape)} {q.dtype} on {q.device} but k or v is "
                f"{tuple(other.shape)} {other.dtype} on {other.device}; they must agree"
            )
    if not q.is_floating_point():
        raise InvalidInputError(f"q has dtype {q.dtype}; attention needs a floating dtype")
    if method not in METHODS:
        raise InvalidInputError(f"method={method!r} is not one of {', '.join(METHODS)}")
    if not 0.0 <= alpha <= 1.0:
        raise InvalidInputError(f"alpha={alpha} must be in [0, 1]; it is a share of mass")
    if not (math.isfinite(scale) and scale >= 0.0):
        raise InvalidInputError(f"scale={scale} must be positive; leave it out for 1/sqrt(D)")
    if grid.dim() != 3:
        raise InvalidInputError(f"grid has {grid.dim()} dimensions; its shape must be [T, H, W]")
    TokenLayout(tuple(grid.shape), q.shape[2], text, sink_frames)
    if sparsity.shape != (1,) or sparsity.dtype != torch.float32 or sparsity.device != q.device:
        raise InvalidInputError(
            f"sparsity is {tuple(sparsity.shape)} {sparsity.dtype} on {sparsity.device}; expected "
            f"float32 [1] on {q.device}"
        )
    if not sparsity.is_cuda and not 0.0 <= sparsity.item() < 1.0:
        raise InvalidInputError(f"sparsity={sparsity.item()} must be in [0, 1); 0 is dense")
    if kv_len is not None and (
        kv_len.shape != q.shape[:1] or kv_len.dtype != torch.int32 or kv_len.device != q.device
    ):
        raise InvalidInputError(
            f"kv_len is {tuple(kv_len.shape)} {kv_len.dtype} on {kv_len.device}; expected int32 "
            f"[{q.shape[0]}] on {q.device}"
        )


@torch.library.custom_op("rainfusion::attention", mutates_args=(), device_types=("cpu", "cuda"))
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Tensor,
    sparsity: Tensor,
    kv_len: Tensor | None,
    text: str,
    method: str,
    alpha: float,
    sink_frames: int,
    scale: float,
) -> Tensor:
    _check(q, (k, v), grid, sparsity, kv_len, text, method, alpha, sink_frames, scale)
    return _face_of(q).rainfusion_attention(
        q,
        k,
        v,
        tuple(grid.shape),
        text=text,
        sparsity=sparsity,
        kv_len=kv_len,
        method=method,
        alpha=alpha,
        sink_frames=sink_frames,
        scale=scale,
    )


def _face_of(q: Tensor) -> ModuleType:
    return cuda_ops if q.is_cuda else reference


@_attention.register_fake
def _attention_fake(q, k, v, grid, sparsity, kv_len, text, method, alpha, sink_frames, scale):
    return torch.empty_like(q)
