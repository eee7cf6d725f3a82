"""The CUDA face of the operator: torch tensors in, kernel launches on torch's stream out."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import UnsupportedError
from .plan import HeadPlan

if TYPE_CHECKING:
    from .native import NativeLibrary, Problem, Strides, Tensors

_ROW_ALIGNMENT = 16  # bytes; the kernels copy rows of q, k, v and out in 16-byte chunks


def rainfusion_attention(q: Tensor, k: Tensor, v: Tensor, grid, **arguments) -> Tensor:
    """Launch ARM, plan and attention; arguments as ``reference.rainfusion_attention``, checked."""
    problem, library = _problem(q, grid, **arguments), _library_for(q.device)
    q, k, v = (_aligned(x) for x in (q, k, v))
    out = torch.empty_like(q)
    tensors = _tensors(q, k, v, out, arguments["sparsity"], arguments["kv_len"])
    with torch.cuda.device(q.device):
        workspace = _workspace(library, problem, q.device)
        stream = torch.cuda.current_stream().cuda_stream
        library.attention(problem, tensors, workspace.data_ptr(), workspace.numel(), stream)
    return out


def classify_heads(q: Tensor, k: Tensor, grid, **arguments) -> HeadPlan:
    """Launch ARM and plan; arguments as ``reference.classify_heads``, checked."""
    from . import native

    problem, library = _problem(q, grid, **arguments), _library_for(q.device)
    q, k = (_aligned(x) for x in (q, k))
    kind = torch.empty(q.shape[:2], dtype=torch.int32, device=q.device)
    heads = HeadPlan(kind, *(torch.empty_like(kind, dtype=torch.float32) for _ in range(3)))
    plan = native.Plan(*(x.data_ptr() for x in heads), None)
    tensors = _tensors(q, k, k, q, arguments["sparsity"], arguments["kv_len"])
    with torch.cuda.device(q.device):
        workspace = _workspace(library, problem, q.device)
        stream = torch.cuda.current_stream().cuda_stream
        library.classify(problem, tensors, plan, workspace.data_ptr(), workspace.numel(), stream)
    return heads


@cache
def _library_for(device: torch.device) -> NativeLibrary:
    """The plugin library, once it is known to hold kernels for this GPU."""
    from . import native

    library = native.load_library()
    library.check_device(*torch.cuda.get_device_capability(device))
    return library


def _problem(q: Tensor, grid, *, text, method, alpha, sink_frames, scale, **_: object) -> Problem:
    from . import native

    dtypes = {torch.float16: native.Dtype.FLOAT16, torch.bfloat16: native.Dtype.BFLOAT16}
    if q.dtype not in dtypes:
        raise UnsupportedError(
            f"q has dtype {q.dtype}; the kernels take float16 and bfloat16. Cast q, k and v, or "
            "run rainfusion_trt.reference.rainfusion_attention"
        )
    problem = native.Problem(
        *q.shape,
        *grid,
        sink_frames=sink_frames,
        alpha=alpha,
        softmax_scale=scale or 0.0,
        text=native.Text[text.upper()],
        method=native.Method[method.upper()],
        dtype=dtypes[q.dtype],
    )
    _library_for(q.device).check(problem)
    return problem


def _tensors(q, k, v, out, sparsity: Tensor, kv_len: Tensor | None) -> Tensors:
    from . import native

    return native.Tensors(
        *(x.data_ptr() for x in (q, k, v, out)),
        *(_strides(x) for x in (q, k, v, out)),
        sparsity=sparsity.data_ptr(),
        kv_len=None if kv_len is None else kv_len.data_ptr(),
    )


def _strides(x: Tensor) -> Strides:
    from . import native

    return native.Strides(*x.stride()[:3])


def _aligned(x: Tensor) -> Tensor:
    """`x` itself where the kernels can read it in place, else a contiguous copy."""
    chunk = _ROW_ALIGNMENT // x.element_size()
    in_place = x.stride(3) == 1 and all(stride % chunk == 0 for stride in x.stride()[:3])
    return x if in_place and x.data_ptr() % _ROW_ALIGNMENT == 0 else x.contiguous()


def _workspace(library: NativeLibrary, problem: Problem, device: torch.device) -> Tensor:
    return torch.empty(library.workspace_size(problem), dtype=torch.uint8, device=device)
