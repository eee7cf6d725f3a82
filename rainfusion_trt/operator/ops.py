"""``rainfusion_attention`` and ``classify_heads``: one torch operator with three faces.

CPU tensors run the reference, CUDA tensors the kernels, and at export the operator is one node of
the graph, which ``rainfusion_trt.export`` writes as ``rainfusion::RainFusionAttention``. A second
operator, ``rainfusion::attention_lse``, also returns the log-sum-exp; it has no ONNX node.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, overload

import torch
from torch import Tensor

from rainfusion_trt.operator import cuda_ops, gradient, reference
from rainfusion_trt.operator.arguments import check_call, check_kinds, grid_tensor, sparsity_tensor
from rainfusion_trt.operator.exact_frames import ExactFrames
from rainfusion_trt.operator.plan import HeadPlan
from rainfusion_trt.operator.settings import AttentionSettings, Method, Precision, TextPlace

__all__ = ["classify_heads", "rainfusion_attention"]


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


def rainfusion_attention(  # type: ignore[misc]  # the overloads leave the settings to this one
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int] | Tensor,
    *,
    text: TextPlace = AttentionSettings.text,
    sparsity: float | Tensor = 0.5,
    kv_len: Tensor | None = None,
    method: Method = AttentionSettings.method,
    alpha: float = AttentionSettings.alpha,
    sink_frames: int = AttentionSettings.sink_frames,
    scale: float | None = None,
    precision: Precision = AttentionSettings.precision,
    last_sink_frames: int = AttentionSettings.last_sink_frames,
    exact_frames: ExactFrames = AttentionSettings.exact_frames,
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
        Place of the L text tokens: "none" (L = 0), "first" or "last".
    sparsity
        s in [0, 1), 0 = dense. A float32 tensor [1] on the device of `q` is read on the device in
        every call, so that it may change under a captured CUDA graph; there, values that are out of
        range cannot be reported: 1 and more act as the largest float below 1, NaN as 0.
    kv_len
        int32 [B], tokens per batch element that are real; keys at or past it are never attended and
        the outputs of rows at or past it are unspecified but finite.
    method
        "rainfusion" (spatial, temporal, textural), "rainfusion_two_way" (no textural heads),
        "rainfusion_plus" (band chosen per head), "rainfusion2" (best blocks by block means,
        arXiv 2512.24086) or "piecewise" (best windows by window means, every other window as one
        key, its mean; docs/rainfusion.md).
    alpha
        Recall from which a head counts as temporal or spatial.
    sink_frames
        Leading latent frames that every token attends to and that attend to every token.
    scale
        Softmax scale, default 1 / sqrt(D).
    precision
        "16bit", or "8bit": q and k are rounded to 8-bit integers, probabilities and v to e4m3
        (docs/rainfusion.md). D of 64 and 128, methods without textural heads, and on CUDA compute
        capability 8.9 or newer. Has no gradient and cannot be exported to ONNX.
    last_sink_frames
        Latent frames at the end of the clip that are as those of `sink_frames`, for a clip whose
        last picture is given.
    exact_frames
        Latent frames anywhere in the clip that are exact, and ranges (begin, end) of them, at most
        four ranges, such as ``(12, (24, 26))``: for a clip of which pictures in the middle are
        given. Of methods without textural heads.
    return_lse
        Also return the log-sum-exp of every row, by which attention over parts of the keys (ring
        attention) is put together. Cannot be exported to ONNX.

    Returns
    -------
    Tensor
        [B, N, S, D] in the dtype of `q`. Differentiable at a sparsity of 0, and on the CPU at
        any: there the choice of keys counts as fixed.
    Tensor, with `return_lse`
        float32 [B, N, S], contiguous: the natural logarithm of the sum of exp(scale * q.k) over the
        keys that the row attends to, a mean of n keys counting n times. -infinity, and an output of
        0, for a row without keys, which only a row at or past `kv_len` can be. Other such rows hold
        a value of no meaning.

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
    settings = AttentionSettings.of(
        text=text,
        method=method,
        alpha=alpha,
        sink_frames=sink_frames,
        scale=scale,
        precision=precision,
        last_sink_frames=last_sink_frames,
        exact_frames=exact_frames,
    )
    check_kinds({"q": q, "k": k, "v": v}, kv_len, grid, sparsity, return_lse=return_lse)
    operator = torch.ops.rainfusion.attention_lse if return_lse else torch.ops.rainfusion.attention
    return operator(
        q, k, v, grid_tensor(grid, q), sparsity_tensor(sparsity, q), kv_len, *settings.flat()
    )


def classify_heads(
    q: Tensor,
    k: Tensor,
    grid: Sequence[int] | Tensor,
    *,
    text: TextPlace = AttentionSettings.text,
    sparsity: float | Tensor = 0.5,
    kv_len: Tensor | None = None,
    method: Method = AttentionSettings.method,
    alpha: float = AttentionSettings.alpha,
    sink_frames: int = AttentionSettings.sink_frames,
    scale: float | None = None,
    precision: Precision = AttentionSettings.precision,
    last_sink_frames: int = AttentionSettings.last_sink_frames,
    exact_frames: ExactFrames = AttentionSettings.exact_frames,
) -> HeadPlan:
    """Classify every head by ARM: its kind, the recalls behind it and how much is computed.

    Parameters as :func:`rainfusion_attention`.

    Returns
    -------
    HeadPlan
        Tensors of shape [B, N] on the device of `q`.
    """
    settings = AttentionSettings.of(
        text=text,
        method=method,
        alpha=alpha,
        sink_frames=sink_frames,
        scale=scale,
        precision=precision,
        last_sink_frames=last_sink_frames,
        exact_frames=exact_frames,
    )
    check_kinds({"q": q, "k": k}, kv_len, grid, sparsity)
    grid, sparsity = grid_tensor(grid, q), sparsity_tensor(sparsity, q)
    check_call(q, (k,), grid, sparsity, kv_len, settings)
    return _face_of(q).classify(q, k, tuple(grid.shape), sparsity, kv_len, settings)


custom_operator = functools.partial(
    torch.library.custom_op, mutates_args=(), device_types=("cpu", "cuda")
)
# A schema holds no objects: the settings are flat in it, in the order of `AttentionSettings.flat`.
ARGUMENTS = (
    "(Tensor q, Tensor k, Tensor v, Tensor grid, Tensor sparsity, Tensor? kv_len, "
    "str text, str method, float alpha, SymInt sink_frames, float scale, str precision, "
    "SymInt last_sink_frames, int[] exact_frames)"
)


@custom_operator("rainfusion::attention", schema=f"{ARGUMENTS} -> Tensor")
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Tensor,
    sparsity: Tensor,
    kv_len: Tensor | None,
    *settings: Any,
) -> Tensor:
    return _run(q, k, v, grid, sparsity, kv_len, settings, return_lse=False)[0]


@custom_operator("rainfusion::attention_lse", schema=f"{ARGUMENTS} -> (Tensor, Tensor)")
def _attention_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Tensor,
    sparsity: Tensor,
    kv_len: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    return _run(q, k, v, grid, sparsity, kv_len, settings, return_lse=True)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Tensor,
    sparsity: Tensor,
    kv_len: Tensor | None,
    flat: tuple[Any, ...],
    *,
    return_lse: bool,
) -> Any:
    settings = AttentionSettings.from_flat(*flat)
    check_call(q, (k, v), grid, sparsity, kv_len, settings)
    return _face_of(q).attention(
        q, k, v, tuple(grid.shape), sparsity, kv_len, settings, return_lse=return_lse
    )


def _face_of(q: Tensor) -> ModuleType:
    return cuda_ops if q.is_cuda else reference


@_attention.register_fake
def _attention_fake(q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q)


@_attention_lse.register_fake
def _attention_lse_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


_attention.register_autograd(gradient.backward, setup_context=gradient.setup)
