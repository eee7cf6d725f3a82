"""ARM's report about the heads of one attention call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class HeadPlan(NamedTuple):
    """The kind of every head, and how it was found.

    Attributes
    ----------
    kind
        int32 [B, N], values of :class:`rainfusion_trt.operator.geometry.Kind`.
    recall_temporal, recall_spatial
        float32 [B, N]; NaN where ARM did not run (dense heads, ``rainfusion2``, ``piecewise``). For
        ``rainfusion_plus`` the recall at the band that decided, else at the widest.
    density
        float32 [B, N], computed token pairs over S * kv_len, blocks counted whole. Each mean that
        stands for a window of ``piecewise`` counts as a key.
    work
        float32 [B, N], the same in whole tiles of a query block by a key block: what the kernels
        compute, rows and columns of a tile counted that are no token.
    """

    kind: Tensor
    recall_temporal: Tensor
    recall_spatial: Tensor
    density: Tensor
    work: Tensor

    @classmethod
    def empty(cls, q: Tensor) -> HeadPlan:
        """Tensors for the plan of a call with queries `q`, to be written by the library."""
        kind = torch.empty(q.shape[:2], dtype=torch.int32, device=q.device)
        return cls(kind, *(torch.empty_like(kind, dtype=torch.float32) for _ in cls._fields[1:]))
