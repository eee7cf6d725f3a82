"""Make lists for FlexAttention: the same heads as ours, in blocks that it can take."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.attention.check import reference_mask
from benchmarks.attention.flex import BLOCK
from benchmarks.attention.plan import PlannedLists
from rainfusion_trt.operator.geometry import BlockShape, Kind, TokenLayout, band_of

_SHAPE = BlockShape(BLOCK, BLOCK)


def flex_lists(layout: TokenLayout, ours: PlannedLists) -> PlannedLists:
    """`ours` in blocks of 128 x 128.

    Spatial and temporal heads follow the same rule at the same sparsity. Random lists are drawn
    anew: for every query block as many random key blocks as make our density, and nothing else.

    Parameters
    ----------
    ours
        Heads of one kind, which is not textural: those have no blocks.
    """
    kind = Kind(int(ours.kind[0, 0]))
    if kind is Kind.BLOCKS:
        kept = _random_blocks(layout, ours)
    else:
        band = band_of(ours.sparsity)
        mask = reference_mask(layout, kind, band, _SHAPE, ours.kind.device)
        kept = mask.expand(*ours.kind.shape, -1, -1)
    return PlannedLists(ours.sparsity, ours.kind, _density(layout, kept), _SHAPE, kept)


def _random_blocks(layout: TokenLayout, ours: PlannedLists) -> Tensor:
    """bool [B, N, blocks, blocks]: the best blocks of random scores, as many in every row."""
    device = ours.kind.device
    count = len(layout.blocks(BLOCK))
    generator = torch.Generator(device).manual_seed(0)
    scores = torch.rand(*ours.kind.shape, count, count, generator=generator, device=device)
    best = scores.topk(max(1, round(ours.density * count)), dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)


def _density(layout: TokenLayout, kept: Tensor) -> float:
    """Share of token pairs in kept blocks, mean over heads."""
    lengths = torch.tensor([b.end - b.begin for b in layout.blocks(BLOCK)], device=kept.device)
    pairs = kept.double().mean((0, 1)) * lengths[:, None] * lengths
    return pairs.sum().item() / layout.tokens**2
