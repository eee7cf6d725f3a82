"""What the C functions of the peers' libraries take."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import KernelError


class PeerTensor(ctypes.Structure):
    """The twin of tensor.h."""

    _fields_ = [  # noqa: RUF012  (as ctypes wants it)
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
    ]


def described(*tensors: Tensor) -> Any:
    """An array of [B, N, rows, columns], whose last dimension is contiguous."""
    for x in tensors:
        if x.dim() != 4 or x.stride(3) != 1:
            raise ValueError(f"strides {x.stride()}: the last of four dimensions must have 1")
    return (PeerTensor * len(tensors))(
        *(PeerTensor(x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)) for x in tensors)
    )


def pointers(*tensors: Tensor | None) -> Any:
    """An array of their addresses; None is null."""
    addresses = [None if x is None else x.data_ptr() for x in tensors]
    return (ctypes.c_void_p * len(tensors))(*addresses)


def address(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def stream_of(x: Tensor) -> ctypes.c_void_p:
    """The current stream of its device."""
    return ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream)


class PeerLibrary:
    """A library's functions; their arguments are ctypes' and integers, their result an error."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises
        ------
        KernelError
            It returned a CUDA error.
        """
        error = getattr(self._library, name)(*arguments)
        if error:
            raise KernelError(f"{name}: CUDA error {error}")
