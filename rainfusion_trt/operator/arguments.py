"""Converts and checks the arguments of an operator call other than its settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.operator.eight_bit import HEAD_SIZES
from rainfusion_trt.operator.geometry import TokenLayout
from rainfusion_trt.operator.settings import AttentionSettings, Precision


def check_kinds(
    tensors: dict[str, Any], kv_len: Any, grid: Any, sparsity: Any, *, return_lse: Any = False
) -> None:
    """Raise InvalidInputError for arguments of another type than the operator has.

    Not `argument_types.typed`: torch.compile and torch.export trace this, and every attention of
    every step runs it.
    """
    if kv_len is not None:
        tensors = {**tensors, "kv_len": kv_len}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise InvalidInputError(f"{name}={shown(value)} must be a torch tensor")
    if not isinstance(grid, Tensor) and not _are_sizes(grid):
        raise InvalidInputError(
            f"grid={shown(grid)} must be three positive sizes (T, H, W), or a tensor of that shape"
        )
    if not isinstance(sparsity, Tensor) and not _is(sparsity, (float, int, Real)):
        raise InvalidInputError(
            f"sparsity={shown(sparsity)} must be a number in [0, 1), or a float32 tensor [1] of it"
        )
    if not isinstance(return_lse, bool):
        raise InvalidInputError(f"return_lse={shown(return_lse)} must be True or False")


def _are_sizes(grid: Any) -> bool:
    if not isinstance(grid, Iterable):
        return False
    sizes = tuple(grid)
    return len(sizes) == 3 and all(_is(size, (int, torch.SymInt, Integral)) for size in sizes)


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def grid_tensor(grid: Sequence[int] | Tensor, q: Tensor) -> Tensor:
    """A tensor of shape `grid` without storage of its own."""
    if isinstance(grid, Tensor):
        return grid
    if min(grid) < 1:
        raise InvalidInputError(f"grid={tuple(grid)} must be three positive sizes (T, H, W)")
    return q.new_empty(1).expand(*grid)


def sparsity_tensor(sparsity: float | Tensor, q: Tensor) -> Tensor:
    """float32 [1] on the device of `q`."""
    if isinstance(sparsity, Tensor):
        return sparsity
    if not 0.0 <= sparsity < 1.0:
        raise InvalidInputError(f"sparsity={sparsity} must be in [0, 1); 0 is dense attention")
    return torch.full((1,), sparsity, dtype=torch.float32, device=q.device)


def check_call(
    q: Tensor,
    others: tuple[Tensor, ...],
    grid: Tensor,
    sparsity: Tensor,
    kv_len: Tensor | None,
    settings: AttentionSettings,
) -> None:
    """Raise InvalidInputError for what does not fit together, before any work starts.

    The settings checked themselves when they were made.
    """
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
    if grid.dim() != 3:
        raise InvalidInputError(f"grid has {grid.dim()} dimensions; its shape must be [T, H, W]")
    TokenLayout.of(grid.shape, q.shape[2], settings)
    check_precision(settings.precision, q.shape[3])
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


def check_precision(precision: Precision, head_size: int | None) -> None:
    """Raise UnsupportedError for a head size that 8 bits are not defined for.

    None is one that is not known yet. Whether a GPU has a kernel, the library says.
    """
    if precision == "8bit" and head_size is not None and head_size not in HEAD_SIZES:
        raise UnsupportedError(
            f"precision='8bit' has no kernel for head size {head_size}, only for "
            f"{' and '.join(map(str, HEAD_SIZES))}; use precision='16bit'"
        )
