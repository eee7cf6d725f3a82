"""The number of keys that hold 95 % of a head's softmax mass, by which heads are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.film.evaluate import Evaluator, dense_attention, gather

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHARES = (0.2, 0.36, 0.5)


class Coverage:
    """Dense attention that notes, per call, each head's share of keys for 95 % of the mass."""

    def __init__(self, rows: int = 256, seed: int = 0):
        self.rows = rows
        self.generator = torch.Generator().manual_seed(seed)
        self.noted: list[Tensor] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        picked = torch.randperm(q.shape[1], generator=self.generator)[: self.rows].to(q.device)
        logits = q[:, picked].float() @ k.float().transpose(1, 2) * q.shape[-1] ** -0.5
        self.noted.append(keys_for(torch.softmax(logits, -1), 0.95).mean(-1).cpu())
        return dense_attention(q, k, v)


def keys_for(weights: Tensor, mass: float) -> Tensor:
    """The least share of the last dimension that holds a share of its mass."""
    sums = weights.sort(-1, descending=True).values.cumsum(-1)
    return ((sums < mass).sum(-1) + 1).clamp(max=weights.shape[-1]).float() / weights.shape[-1]


def coverage(evaluator: Evaluator) -> dict[str, Any]:
    """Quantiles over cases, layers and heads, and the mean over cases per layer and head."""
    layers = evaluator.scene.layers
    parts = []
    for i in evaluator.mine:
        attention = Coverage(seed=i)
        evaluator.run(attention, evaluator.cases[i])
        parts.append(torch.stack(attention.noted).tolist())
    table = torch.tensor([case for part in gather(parts) for case in part])
    everything = table.flatten()
    return {
        "mean": float(everything.mean()),
        "quantiles": {
            str(p): float(everything.quantile(torch.tensor(p).to(everything))) for p in QUANTILES
        },
        "share_within": {str(s): float((everything <= s).float().mean()) for s in SHARES},
        "layers_heads": [
            [round(float(x), 4) for x in row] for row in table.mean(0).view(layers, -1)
        ],
    }
