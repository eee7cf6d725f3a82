"""``rainfusion_attention`` and ``classify_heads``: one torch operator with three faces.

CPU tensors run the reference, CUDA tensors the kernels, and at export the operator is one node of
the graph, which ``rainfusion_trt.export`` writes as ``rainfusion::RainFusionAttention``. A second
operator, ``rainfusion::attention_lse``, also returns the log-sum-exp; it has no ONNX node.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, overload

import torch
from torch import Tensor

from rainfusion_trt.operator import cuda_ops, reference
from rainfusion_trt.operator.arguments import check_call, grid_tensor, sparsity_tensor
from rainfusion_trt.operator.geometry import Method, TextPlace
from rainfusion_trt.operator.plan import HeadPlan

__all__ = ["classify_heads", "rainfusion_attention"]


@overload
def rainfusion_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int] | Tensor,
    *,
    return_lse: Literal[True],
    **arguments: Any,
) -> tuple[Tensor, Tensor]: ...


@overload
def rainfusion_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int] | Tensor,
    *,
    return_lse: Literal[False] = False,
    **arguments: Any,
) -> Tensor: ...


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
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
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
    return_lse
        Also return the log-sum-exp of every row, by which attention over parts of the keys (ring
        attention) is put together. Cannot be exported to ONNX.

    Returns
    -------
    Tensor
        [B, N, S, D] in the dtype of `q`. No gradient.
    Tensor, with `return_lse`
        float32 [B, N, S], contiguous: the natural logarithm of the sum of exp(scale * q.k) over the
        keys that the row attends to. -infinity, and an output of 0, for a row without keys, which
        only a row at or past `kv_len` can be. Other such rows hold a value of no meaning.

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
    operator = torch.ops.rainfusion.attention_lse if return_lse else torch.ops.rainfusion.attention
    return operator(
        q,
        k,
        v,
        grid_tensor(grid, q),
        sparsity_tensor(sparsity, q),
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
    grid = grid_tensor(grid, q)
    sparsity = sparsity_tensor(sparsity, q)
    arguments: dict[str, Any] = {
        "text": text,
        "sparsity": sparsity,
        "kv_len": kv_len,
        "method": method,
        "alpha": alpha,
        "sink_frames": sink_frames,
        "scale": scale,
    }
    check_call(q, (k,), grid, sparsity, kv_len, text, method, alpha, sink_frames, scale or 0.0)
    return _face_of(q).classify_heads(q, k, tuple(grid.shape), **arguments)


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
    options = (text, method, alpha, sink_frames, scale)
    return _run(q, k, v, grid, sparsity, kv_len, *options, return_lse=False)


@torch.library.custom_op("rainfusion::attention_lse", mutates_args=(), device_types=("cpu", "cuda"))
def _attention_lse(
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
) -> tuple[Tensor, Tensor]:
    options = (text, method, alpha, sink_frames, scale)
    return _run(q, k, v, grid, sparsity, kv_len, *options, return_lse=True)


def _run(
    q, k, v, grid, sparsity, kv_len, text, method, alpha, sink_frames, scale, *, return_lse
) -> Any:
    check_call(q, (k, v), grid, sparsity, kv_len, text, method, alpha, sink_frames, scale)
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
        return_lse=return_lse,
    )


def _face_of(q: Tensor) -> ModuleType:
    return cuda_ops if q.is_cuda else reference


@_attention.register_fake
def _attention_fake(q, k, v, grid, sparsity, kv_len, text, method, alpha, sink_frames, scale):
    return torch.empty_like(q)


@_attention_lse.register_fake
def _attention_lse_fake(q, k, v, grid, sparsity, kv_len, text, method, alpha, sink_frames, scale):
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
