"""Errors of dense attention against float64."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_ROWS = 256  # whose error is looked at


def dense_error(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> float:
    """Relative error of some rows of the first and the last head against float64."""
    ends = ((0, 0), (q.shape[0] - 1, q.shape[1] - 1))
    return max(head_errors(q, k, v, out, ends))


def head_errors(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, heads: Iterable[tuple[int, int]]
) -> list[float]:
    """Relative error of some rows of heads (batch element, head) against float64."""
    rows = torch.linspace(0, q.shape[2] - 1, _ROWS, device=q.device).long()
    errors = []
    for b, h in heads:
        scores = q[b, h, rows].double() @ k[b, h].double().T * q.shape[3] ** -0.5
        wanted = torch.softmax(scores, -1) @ v[b, h].double()
        errors.append(((out[b, h, rows].double() - wanted).norm() / wanted.norm()).item())
    return errors
