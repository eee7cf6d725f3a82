"""Rows of attention over what a rule keeps, against all keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.fidelity.synthetic.cuts import Cut
from benchmarks.fidelity.synthetic.heads import Head, Layout


@dataclass(frozen=True)
class DenseRows:
    """Scaled scores [rows, S] of some non-sink rows, and their outputs [rows, D], in float32."""

    q: Tensor
    scores: Tensor
    out: Tensor

    @classmethod
    def of(cls, head: Head, layout: Layout, rows: Tensor) -> DenseRows:
        q = head.q[layout.sinks + rows].float()
        scores = q @ head.k.float().T * q.shape[-1] ** -0.5
        return cls(q, scores, torch.softmax(scores, -1) @ head.v.float())

    def error(self, out: Tensor) -> tuple[float, float]:
        """Squared norms of the difference and of the dense rows."""
        return float((out - self.out).square().sum()), float(self.out.square().sum())


def attend_rows(
    head: Head, layout: Layout, cut: Cut, dense: DenseRows, kept: Tensor, rest: str
) -> Tensor:
    """Output [rows, D] of the dense rows' queries for a choice [rows, key windows]."""
    sinks = layout.sinks
    scale = dense.q.shape[-1] ** -0.5
    scores = dense.scores.clone()
    scores[:, sinks:].masked_fill_(~kept[:, cut.keys.window_of], -math.inf)
    if rest == "drop":
        return torch.softmax(scores, -1) @ head.v.float()
    k, v = head.k[sinks:], head.v[sinks:]
    mean_k, mean_v = cut.keys.means(k), cut.keys.means(v)
    pseudo = dense.q @ mean_k.to(k.dtype).float().T * scale + cut.keys.sizes.log()
    pseudo.masked_fill_(kept, -math.inf)
    weights = torch.softmax(torch.cat([scores, pseudo], -1), -1)
    real, rest_w = weights.split([layout.tokens, cut.keys.count], -1)
    out = real @ head.v.float() + rest_w @ mean_v.to(v.dtype).float()
    if rest == "first":
        centred = k.float() - mean_k[cut.keys.window_of]
        share = rest_w.sum(-1, keepdim=True) / layout.free
        out += share * scale * (dense.q @ (centred.T @ v.float()))
    return out
