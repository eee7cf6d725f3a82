"""Enums and structs of plugins/include/rainfusion/rainfusion.h for ctypes.

Pointers are integers, shapes plain numbers. The ``of`` constructors read shapes, strides and
addresses off torch tensors; nothing here imports torch.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.exact_frames import MOST_RANGES, FrameRanges

if TYPE_CHECKING:
    from torch import Tensor

    from rainfusion_trt.operator.plan import HeadPlan
    from rainfusion_trt.operator.settings import AttentionSettings


class Status(enum.IntEnum):
    SUCCESS = 0
    INVALID_ARGUMENT = 1
    UNSUPPORTED = 2
    WORKSPACE_TOO_SMALL = 3
    CUDA_ERROR = 4
    COMMUNICATION_ERROR = 5


class Dtype(enum.IntEnum):
    FLOAT16 = 0
    BFLOAT16 = 1


class Text(enum.IntEnum):
    NONE = 0
    FIRST = 1
    LAST = 2


class Method(enum.IntEnum):
    RAINFUSION = 0
    RAINFUSION_TWO_WAY = 1
    RAINFUSION_PLUS = 2
    RAINFUSION2 = 3
    PIECEWISE = 4


class Precision(enum.IntEnum):
    BITS_16 = 0
    BITS_8 = 1


class Frames(ctypes.Structure):
    """RainfusionFrames: latent frames [begin, end)."""

    _fields_ = [("begin", ctypes.c_int32), ("end", ctypes.c_int32)]


class Problem(ctypes.Structure):
    """RainfusionProblem: shapes and attributes, known to the host before a launch."""

    _fields_ = [
        ("batch", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("tokens", ctypes.c_int32),
        ("head_size", ctypes.c_int32),
        ("grid_t", ctypes.c_int32),
        ("grid_h", ctypes.c_int32),
        ("grid_w", ctypes.c_int32),
        ("sink_frames", ctypes.c_int32),
        ("alpha", ctypes.c_float),
        ("softmax_scale", ctypes.c_float),
        ("text", ctypes.c_int),
        ("method", ctypes.c_int),
        ("dtype", ctypes.c_int),
        ("block_q", ctypes.c_int32),  # 0 = the default of the head size, geometry.block_shape
        ("block_k", ctypes.c_int32),
        ("precision", ctypes.c_int),
        ("last_sink_frames", ctypes.c_int32),
        ("exact_frames", Frames * MOST_RANGES),
    ]

    @classmethod
    def of(cls, q: Tensor, grid: Sequence[int], settings: AttentionSettings) -> Problem:
        """The problem of `q` [B, N, S, D]."""
        batch, heads, tokens, head_size = q.shape
        return cls(
            batch=batch,
            heads=heads,
            tokens=tokens,
            head_size=head_size,
            grid_t=grid[0],
            grid_h=grid[1],
            grid_w=grid[2],
            sink_frames=settings.sink_frames,
            alpha=settings.alpha,
            softmax_scale=settings.scale,
            text=Text[settings.text.upper()],
            method=Method[settings.method.upper()],
            dtype=_member(Dtype, str(q.dtype).removeprefix("torch."), "dtype"),
            precision=Precision.BITS_8 if settings.precision == "8bit" else Precision.BITS_16,
            last_sink_frames=settings.last_sink_frames,
            exact_frames=exact_frames(settings.exact_frames),
        )


def exact_frames(ranges: FrameRanges) -> ctypes.Array[Frames]:
    """`Problem.exact_frames` of such ranges."""
    return (Frames * MOST_RANGES)(*(Frames(*each) for each in ranges))


class Strides(ctypes.Structure):
    """RainfusionStrides, in elements."""

    _fields_ = [
        ("batch", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("token", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, x: Tensor) -> Strides:
        """Strides of a tensor [B, N, S, D] whose last dimension is contiguous."""
        return cls(*x.stride()[:3])


class Tensors(ctypes.Structure):
    """RainfusionTensors: device pointers and strides."""

    _fields_ = [
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("q_strides", Strides),
        ("k_strides", Strides),
        ("v_strides", Strides),
        ("out_strides", Strides),
        ("sparsity", ctypes.c_void_p),
        ("kv_len", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
    ]

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor | None,
        *,
        sparsity: Tensor,
        kv_len: Tensor | None = None,
        lse: Tensor | None = None,
    ) -> Tensors:
        """Addresses of CUDA tensors, which must outlive the launch; classify needs no `out`."""
        return cls(
            q=q.data_ptr(),
            k=k.data_ptr(),
            v=v.data_ptr(),
            out=_address(out),
            q_strides=Strides.of(q),
            k_strides=Strides.of(k),
            v_strides=Strides.of(v),
            out_strides=Strides.of(out if out is not None else q),
            sparsity=sparsity.data_ptr(),
            kv_len=_address(kv_len),
            lse=_address(lse),
        )


class Plan(ctypes.Structure):
    """RainfusionPlan: device pointers, each of which may be None."""

    _fields_ = [
        ("kind", ctypes.c_void_p),
        ("recall_temporal", ctypes.c_void_p),
        ("recall_spatial", ctypes.c_void_p),
        ("density", ctypes.c_void_p),
        ("work", ctypes.c_void_p),
        ("block_mask", ctypes.c_void_p),
    ]

    @classmethod
    def of(cls, plan: HeadPlan, block_mask: Tensor | None = None) -> Plan:
        """Addresses of the tensors of a `rainfusion_trt.operator.plan.HeadPlan`."""
        return cls(
            kind=plan.kind.data_ptr(),
            recall_temporal=plan.recall_temporal.data_ptr(),
            recall_spatial=plan.recall_spatial.data_ptr(),
            density=plan.density.data_ptr(),
            work=plan.work.data_ptr(),
            block_mask=_address(block_mask),
        )


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _member(kind: type[enum.IntEnum], name: str, what: str) -> int:
    try:
        return kind[name.upper()]
    except KeyError:
        choices = ", ".join(member.lower() for member in kind.__members__)
        raise InvalidInputError(f"{what} {name!r} is unknown: use one of {choices}") from None
