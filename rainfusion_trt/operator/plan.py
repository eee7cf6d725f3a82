"""ARM's report about the heads of one attention call."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class HeadPlan(NamedTuple):
    """The kind of every head, and how it was found.

    Attributes
    ----------
    kind
        int32 [B, N], values of :class:`rainfusion_trt.operator.geometry.Kind`.
    recall_temporal, recall_spatial
        float32 [B, N]; NaN where ARM did not run (dense heads, ``rainfusion2``). For
        ``rainfusion_plus`` the recall at the band that decided, else at the widest.
    density
        float32 [B, N], computed token pairs over S * kv_len, blocks counted whole.
    """

    kind: Tensor
    recall_temporal: Tensor
    recall_spatial: Tensor
    density: Tensor
