"""FlashAttention-3, dense, in bfloat16 and in e4m3."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.attention.peers.bindings import (
    PeerLibrary,
    address,
    described,
    pointers,
    stream_of,
)
from benchmarks.attention.peers.build import Library
from benchmarks.attention.peers.sources import Source

_ELEMENTS = {torch.bfloat16: "bfloat16_t", torch.float8_e4m3fn: "float_e4m3_t"}
_CLUSTER_ROWS = 128  # queries of a block where blocks may share their keys
_ROUNDING = "round_heads"
_BLOCKS = 64  # of a head that is rounded: enough to fill a GPU from a few heads on
_FLAGS = (  # those of its own build that its kernels depend on
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "-DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED",
    "-DCUTLASS_ENABLE_GDC_FOR_SM90",
    "-DCUTLASS_DEBUG_TRACE_LEVEL=0",
    "-DNDEBUG",
)
Scaled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Kernel:
    """One of its kernels: the head size, the element, and how many blocks share their keys."""

    head_size: int
    element: str
    cluster: int

    @property
    def name(self) -> str:
        return f"flash_attention_3_{self.element}_{self.head_size}_{self.cluster}"


def kernel_of(head_size: int, queries: int, dtype: torch.dtype) -> Kernel:
    """The kernel that its own dispatch takes: run_mha_fwd_ in flash_fwd_launch_template.h."""
    shares = head_size == 128 and dtype == torch.bfloat16
    even = -(-queries // _CLUSTER_ROWS) % 2 == 0
    return Kernel(head_size, _ELEMENTS[dtype], 2 if shares and even else 1)


def libraries(sizes: Iterable[tuple[int, int]], source: Source, cutlass: Source) -> list[Library]:
    """What attention of these head sizes and numbers of queries needs."""
    pairs = list(sizes)
    kernels = dict.fromkeys(kernel_of(*pair, dtype) for pair in pairs for dtype in _ELEMENTS)
    return [Library(_ROUNDING, f"{_ROUNDING}.cu")] + [
        Library(
            kernel.name,
            "flash_attention_3.cu",
            (
                *_FLAGS,
                f"-DPEER_HEAD_SIZE={kernel.head_size}",
                f"-DPEER_CLUSTER={kernel.cluster}",
                f"-DPEER_ELEMENT=cutlass::{kernel.element}",
            ),
            (source.folder / "hopper", cutlass.folder / "include"),
            f"{source.label}, {cutlass.label}",
            f"{source.expected.tested} and CUTLASS of {cutlass.expected.tested}",
        )
        for kernel in kernels
    ]


class FlashAttention3:
    """Its forward.

    Parameters
    ----------
    paths
        Built libraries, by their names.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._loaded: dict[str, PeerLibrary] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of bfloat16 [B, N, S, D]."""
        return self._forward((q, k, v), (None, None, None))

    def attend_8bit(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention in e4m3 of bfloat16 [B, N, S, D], rounded here."""
        return self.attend_rounded(*map(self.rounded, (q, k, v)))

    def attend_rounded(self, q: Scaled, k: Scaled, v: Scaled) -> Tensor:
        """Attention of what `rounded` gave."""
        tensors, descales = zip(q, k, v, strict=True)
        return self._forward(tensors, descales)

    def rounded(self, x: Tensor) -> Scaled:
        """e4m3 [B, N, S, D] and what to multiply each head by, float32 [B, N]."""
        x = x.contiguous()
        heads, elements = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
        out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
        largest, descale = torch.empty(
            (2, *x.shape[:2]), device=x.device, dtype=torch.float32
        ).unbind(0)
        self._library(_ROUNDING).call(
            "peer_round_heads",
            address(x),
            heads,
            ctypes.c_int64(elements),
            address(largest),
            address(out),
            address(descale),
            _BLOCKS,
            stream_of(x),
        )
        return out, descale

    def _forward(self, tensors: tuple[Tensor, ...], descales: tuple[Tensor | None, ...]) -> Tensor:
        q, k, _ = tensors
        batch, heads, queries, head_size = q.shape
        out = torch.empty_like(q, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
        lse = torch.empty((batch, heads, queries), device=q.device, dtype=torch.float32)
        self._library(kernel_of(head_size, queries, q.dtype).name).call(
            "peer_forward",
            described(*tensors, out),
            pointers(*descales),
            address(lse),
            batch,
            heads,
            queries,
            k.shape[2],
            ctypes.c_float(head_size**-0.5),
            torch.cuda.get_device_properties(q.device).multi_processor_count,
            stream_of(q),
        )
        return out

    def _library(self, name: str) -> PeerLibrary:
        if name not in self._loaded:
            self._loaded[name] = PeerLibrary(self._paths[name])
        return self._loaded[name]
