"""SageAttention 2 for Hopper: q and k as integers of 8 bits, probabilities and v as e4m3."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
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
from benchmarks.attention.peers.sources import Source, above, refusal
from rainfusion_trt.errors import InvalidInputError

_NAME = "sage_attention"
_PACKAGE = "sageattention"
# The halves of its files that are for the device, and the first line that is for the host.
_CUT = {
    "sage_kernels.cuh": ("csrc/qattn/qk_int_sv_f8_cuda_sm90.cu", "torch::Tensor "),
    "sage_quantisers.cuh": ("csrc/fused/fused.cu", "void quant_per_block_int8_cuda("),
}
_NOT_USED = ("torch/extension.h", "ATen/cuda/CUDAContext.h")  # included; for the host alone
_FLAGS = ("-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__")
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def library(source: Source, folder: Path) -> Library:
    """What it needs, with the headers that are made for it in a folder.

    Raises
    ------
    InvalidInputError
        Its files are not laid out as expected.
    """
    headers = folder / f"{_NAME}-headers"
    for name in _NOT_USED:
        (headers / name).parent.mkdir(parents=True, exist_ok=True)
        (headers / name).write_text("", encoding="utf-8")
    for name, (path, line) in _CUT.items():
        half = above((source.folder / path).read_text(encoding="utf-8"), line)
        if half is None:
            raise refusal(source.expected, source.folder, f"has no line `{line}...` in {path}")
        (headers / name).write_text(half, encoding="utf-8")
    include = (headers, source.folder / "csrc" / "qattn")
    return Library(
        _NAME, f"{_NAME}.cu", _FLAGS, include, source.label, tested=source.expected.tested
    )


def sage_attention(source: Source, paths: Mapping[str, Path]) -> Attention:
    """Its attention of bfloat16 [B, N, S, D], as its own Python prepares and calls the kernels.

    Its compiled modules are ours, which call the same kernels on the current stream.
    """
    ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)  # whose functions the library calls
    with _importing(source.folder):
        for name, functions in _modules(PeerLibrary(paths[_NAME])).items():
            module = types.ModuleType(f"{_PACKAGE}.{name}")
            vars(module).update(functions)
            sys.modules[module.__name__] = module
        core = importlib.import_module(f"{_PACKAGE}.core")
    if not core.SM90_ENABLED:
        raise refusal(source.expected, source.folder, "has kernels for Hopper that do not import")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = core.sageattn_qk_int8_pv_fp8_cuda_sm90(q, k, v, tensor_layout="HND")
        return out

    return attend


@contextlib.contextmanager
def _importing(folder: Path) -> Iterator[None]:
    if _PACKAGE in sys.modules:
        raise InvalidInputError(f"--sage-attention {folder}: {_PACKAGE} is imported already")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _modules(kernels: PeerLibrary) -> dict[str, dict[str, Callable[..., Tensor | None]]]:
    """Functions of its compiled modules, with its names and arguments; layout 1 is [B, N, S, D]."""

    def transpose_pad_permute_cuda(v: Tensor, out: Tensor, layout: int) -> None:
        _check_layout(layout)
        batch, heads, tokens, head_size = v.shape
        kernels.call(
            "peer_transpose", described(v, out), batch, heads, tokens, head_size, stream_of(v)
        )

    def scale_fuse_quant_cuda(
        x: Tensor, out: Tensor, scale: Tensor, tokens: int, largest: float, layout: int
    ) -> None:
        _check_layout(layout)
        batch, heads, head_size, _ = x.shape
        sizes = (batch, heads, tokens, head_size)
        kernels.call(
            "peer_round_rows",
            described(x, out),
            address(scale),
            *sizes,
            ctypes.c_float(largest),
            stream_of(x),
        )

    def qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        q_scale: Tensor,
        k_scale: Tensor,
        v_scale: Tensor,
        layout: int,
        causal: int,
        granularity: int,
        scale: float,
        return_lse: int,
    ) -> Tensor:
        _check_layout(layout)
        if (causal, granularity, return_lse) != (0, 3, 0) or out.dtype != torch.bfloat16:
            raise ValueError("only dense attention in bfloat16 with scales per thread is built")
        batch, heads, queries, head_size = q.shape
        sizes = (batch, heads, queries, k.shape[2], v.shape[3], head_size)
        kernels.call(
            "peer_attend",
            described(q, k, v, out),
            pointers(q_scale, k_scale, v_scale),
            *sizes,
            ctypes.c_float(scale),
            stream_of(q),
        )
        return torch.empty(0)

    rounding = (transpose_pad_permute_cuda, scale_fuse_quant_cuda)
    attention = (qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf,)
    return {
        "_fused": {function.__name__: function for function in rounding},
        "_qattn_sm90": {function.__name__: function for function in attention},
    }


def _check_layout(layout: int) -> None:
    if layout != 1:
        raise ValueError(f"tensor layout {layout}: only 1, [B, N, S, D], is built")
