"""Sparse VideoGen's rule: every head spatial or temporal, by the error of sampled queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.film.kinds import KindRule
from benchmarks.film.scores import Heads

SAMPLED_QUERIES = 64  # its authors (arXiv 2502.01776) sample about one per cent


@dataclass
class SampledKindRule(KindRule):
    """Each head takes the kind with the smaller error over sampled queries; needs the values."""

    seed: int = 0

    def classify(self, heads: Heads) -> list[str]:
        """The kind of every head."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(self.scene.free, generator=generator)[:SAMPLED_QUERIES]
        rows = rows.to(heads.q.device)
        logits = heads.free_q[:, rows].float() @ heads.k.float().transpose(1, 2) * heads.scale
        wanted = torch.softmax(logits, -1) @ heads.v.float()
        kinds = sorted(self.masks)
        errors = []
        for kind in kinds:
            masked = logits.masked_fill(~self.masks[kind][rows], -math.inf)
            found = torch.softmax(masked, -1) @ heads.v.float()
            errors.append((found - wanted).square().mean((1, 2)))
        best: Tensor = torch.stack(errors).argmin(0)
        return [kinds[i] for i in best.tolist()]
