"""The CUDA face of the operator: torch tensors in, kernel launches on torch's stream out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.operator.plan import HeadPlan

if TYPE_CHECKING:
    from rainfusion_trt.operator.native import NativeLibrary, Plan
    from rainfusion_trt.operator.settings import AttentionSettings

_ROW_ALIGNMENT = 16  # bytes; the kernels copy rows of q, k, v and out in 16-byte chunks


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    sparsity: Tensor,
    kv_len: Tensor | None,
    settings: AttentionSettings,
    *,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Launch ARM, plan and attention; arguments as ``reference.attention``, checked."""
    q, k, v = (_aligned(x) for x in (q, k, v))
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32) if return_lse else None
    launch("attention", (q, k, v, out), grid, sparsity, kv_len, settings, lse=lse)
    return out, lse


def classify(
    q: Tensor,
    k: Tensor,
    grid: Sequence[int],
    sparsity: Tensor,
    kv_len: Tensor | None,
    settings: AttentionSettings,
) -> HeadPlan:
    """Launch ARM and plan; arguments as ``reference.classify``, checked."""
    q, k = (_aligned(x) for x in (q, k))
    plan = HeadPlan.empty(q)
    launch("classify", (q, k, k, None), grid, sparsity, kv_len, settings, plan=plan)
    return plan


def planned_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    sparsity: Tensor,
    kv_len: Tensor | None,
    settings: AttentionSettings,
) -> tuple[Tensor, HeadPlan]:
    """As `attention`, with the report on its heads."""
    q, k, v = (_aligned(x) for x in (q, k, v))
    out = torch.empty_like(q)
    kind = torch.empty(q.shape[:2], dtype=torch.int32, device=q.device)
    plan = HeadPlan(
        kind, *(torch.empty_like(kind, dtype=torch.float32) for _ in HeadPlan._fields[1:])
    )
    launch("attention", (q, k, v, out), grid, sparsity, kv_len, settings, plan=plan)
    return out, plan


def launch(
    entry: str,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    grid: Sequence[int],
    sparsity: Tensor,
    kv_len: Tensor | None,
    settings: AttentionSettings,
    *,
    plan: Plan | HeadPlan | None = None,
    lse: Tensor | None = None,
) -> None:
    """Enqueue an entry of the library on torch's current stream.

    Parameters
    ----------
    entry : str
        "attention" or "classify".
    tensors : tuple of Tensor
        q, k, v and out, [B, N, S, D]; classify needs no out.
    grid, sparsity, kv_len, settings
        Those of the call, checked.
    plan : Plan or HeadPlan, optional
        Tensors for the report; an empty ``native.Plan()`` plans without reporting.
    lse : Tensor, optional
        Output of the log-sum-exp, float32 [B, N, S], contiguous.

    Raises
    ------
    InvalidInputError, UnsupportedError
        The library has no kernel for this, and says why.
    """
    from rainfusion_trt.operator import native

    q = tensors[0]
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise UnsupportedError(
            f"q has dtype {q.dtype}; the kernels take float16 and bfloat16. Cast q, k and v, or "
            "run rainfusion_trt.operator.reference.rainfusion_attention"
        )
    library = _library_for(q.device)
    problem = native.Problem.of(q, grid, settings)
    addresses = native.Tensors.of(*tensors, sparsity=sparsity, kv_len=kv_len, lse=lse)
    size = library.workspace_size(problem)  # refuses a problem without a kernel
    with torch.cuda.device(q.device):
        workspace = torch.empty(size, dtype=torch.uint8, device=q.device)
        getattr(library, entry)(
            problem=problem,
            tensors=addresses,
            plan=plan,
            workspace=workspace.data_ptr(),
            workspace_bytes=size,
            stream=torch.cuda.current_stream().cuda_stream,
        )


@cache
def _library_for(device: torch.device) -> NativeLibrary:
    """The plugin library, once it is known to hold kernels for this GPU."""
    from rainfusion_trt.operator import native

    library = native.load_library()
    library.check_device(*torch.cuda.get_device_capability(device))
    return library


def _aligned(x: Tensor) -> Tensor:
    """`x` itself where the kernels can read it in place, else a contiguous copy."""
    chunk = _ROW_ALIGNMENT // x.element_size()
    # A stride of 0 (an expanded tensor) is nothing that the copy engine is known to take.
    in_place = x.stride(3) == 1 and all(
        stride % chunk == 0 and (stride > 0 or size == 1)
        for stride, size in zip(x.stride()[:3], x.shape[:3], strict=True)
    )
    return x if in_place and x.data_ptr() % _ROW_ALIGNMENT == 0 else x.contiguous()
