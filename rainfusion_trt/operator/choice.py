"""How the reference decides which keys each head attends to: ARM, best blocks, best windows.

Follows RainFusion (arXiv 2505.21036, sections 3.2 and 3.3) and RainFusion2.0 (arXiv 2512.24086) as
laid down in ``docs/rainfusion.md``. Every mask is counted from token pairs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rainfusion_trt.operator.geometry import (
    PLUS_BANDS,
    TWO_WAY_RECALL,
    Block,
    BlockShape,
    Kind,
    TokenLayout,
    always_kept,
    band_of,
    kept_blocks,
    pair_mask,
    stride_of,
)
from rainfusion_trt.operator.piecewise import Windows

_NAN = float("nan")


def block_mask(
    layout: TokenLayout,
    kind: Kind,
    band: int,
    shape: BlockShape,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Block pairs that a dense, spatial or temporal head computes.

    A pair is kept if one block holds a sink token, if the two share a token, or if at least half of
    its token pairs are in the kind's mask.

    Returns
    -------
    Tensor
        bool [q_blocks, k_blocks], in memory order.
    """
    mask = always_kept(layout, shape, device)
    if kind is Kind.DENSE:
        return torch.ones_like(mask)
    rows, q_begins, q_ends = _free_blocks(layout, shape.q, device)
    columns, k_begins, k_ends = _free_blocks(layout, shape.k, device)
    if len(rows) == 0 or len(columns) == 0:
        return mask
    first = int(k_begins[0])
    keys = torch.arange(first, int(k_ends[-1]), device=device)
    for row, begin, end in zip(rows.tolist(), q_begins.tolist(), q_ends.tolist(), strict=True):
        queries = torch.arange(begin, end, device=device)[:, None]
        hits = pair_mask(layout, kind, band, queries, keys).sum(0)
        total = torch.cat([hits.new_zeros(1), hits.cumsum(0)])
        pairs = total[k_ends - first] - total[k_begins - first]
        mask[row, columns] |= 2 * pairs >= (end - begin) * (k_ends - k_begins)
    return mask


def _free_blocks(layout: TokenLayout, size: int, device: str | torch.device) -> Tensor:
    """int64 [3, n]: index, begin and end of the blocks without a sink token, in raster indices."""
    free = [
        (i, block.begin - layout.free_begin, block.end - layout.free_begin)
        for i, block in enumerate(layout.blocks(size))
        if not block.sink
    ]
    return torch.tensor(free, dtype=torch.int64, device=device).view(-1, 3).T


@dataclass
class Call:
    """One call's constants, and what its heads share."""

    layout: TokenLayout
    shape: BlockShape
    sparsity: float
    method: str
    alpha: float
    scale: float
    device: torch.device
    q_blocks: list[Block] = field(init=False)
    k_blocks: list[Block] = field(init=False)
    dense: bool = field(init=False)  # every head
    windows: Windows | None = field(init=False)  # None where heads have none
    _masks: dict[tuple[Kind, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.q_blocks = self.layout.blocks(self.shape.q)
        self.k_blocks = self.layout.blocks(self.shape.k)
        self.windows = None
        self.dense = not self.sparsity > 0 or self.layout.always_dense
        if self.method == "piecewise" and not self.dense:
            windows = Windows(self.layout, self.shape, self.device)
            if windows.k_cut.windows > 1:
                self.windows = windows
            else:
                self.dense = True

    def mask(self, kind: Kind, band: int) -> Tensor:
        if (kind, band) not in self._masks:
            mask = block_mask(self.layout, kind, band, self.shape, self.device)
            self._masks[kind, band] = mask
        return self._masks[kind, band]

    @functools.cached_property
    def textural_keys(self) -> Tensor:
        """bool [S]: sinks and checkerboard keys."""
        layout = self.layout
        keys = layout.is_sink().to(self.device)
        free = torch.arange(layout.free_tokens, device=self.device)
        kept = pair_mask(layout, Kind.TEXTURAL, stride_of(self.sparsity), free, free)
        keys[layout.free_begin : layout.free_end] = kept
        return keys


@dataclass(frozen=True)
class Head:
    """ARM's decision for one head."""

    kind: Kind
    recall_temporal: float
    recall_spatial: float
    mask: Tensor | None  # of blocks, or of windows; None for textural heads


def _recall(
    call: Call, q: Tensor, k: Tensor, kind: Kind, bands: Sequence[int], kv_len: int
) -> list[float]:
    """Mass of softmax(q' k'^T) inside the mask of `kind`, for each band, over ARM's sample."""
    layout = call.layout
    step, count = layout.local_sample() if kind is Kind.TEMPORAL else layout.global_sample()
    raster = torch.arange(count, device=call.device) * step
    raster = raster[raster + layout.free_begin < kv_len]
    if raster.numel() == 0:
        return [0.0] * len(bands)
    tokens = raster + layout.free_begin
    mass = torch.softmax(q[tokens].float() @ k[tokens].float().T * call.scale, dim=-1)
    return [
        (mass * pair_mask(layout, kind, band, raster[:, None], raster)).sum(-1).mean().item()
        for band in bands
    ]


def choose(call: Call, q: Tensor, k: Tensor, kv_len: int) -> Head:
    """ARM for one head: q, k [S, D]."""
    if call.dense:
        return Head(Kind.DENSE, _NAN, _NAN, call.mask(Kind.DENSE, 0))
    if call.windows is not None:
        chosen = call.windows.choose(q, k, call.sparsity, call.scale, kv_len)
        return Head(Kind.WINDOWS, _NAN, _NAN, chosen)
    if call.method == "rainfusion2":
        return Head(Kind.BLOCKS, _NAN, _NAN, _best_blocks(call, q, k, kv_len))

    bands = PLUS_BANDS if call.method == "rainfusion_plus" else (band_of(call.sparsity),)
    temporal = _recall(call, q, k, Kind.TEMPORAL, bands, kv_len)
    spatial = _recall(call, q, k, Kind.SPATIAL, bands, kv_len)

    def first(recalls: list[float]) -> int | None:
        return next((i for i, recall in enumerate(recalls) if recall >= call.alpha), None)

    at_t, at_s = first(temporal), first(spatial)
    if call.method == "rainfusion_two_way":
        is_temporal = temporal[0] > TWO_WAY_RECALL or temporal[0] > spatial[0]
        at_t, at_s = (0, None) if is_temporal else (None, 0)
    recalls = (
        temporal[-1 if at_t is None else at_t],
        spatial[-1 if at_s is None else at_s],
    )
    if at_t is not None:
        return Head(Kind.TEMPORAL, *recalls, call.mask(Kind.TEMPORAL, bands[at_t]))
    if at_s is not None:
        return Head(Kind.SPATIAL, *recalls, call.mask(Kind.SPATIAL, bands[at_s]))
    return Head(Kind.TEXTURAL, *recalls, None)


def _block_means(blocks: Sequence[Block], x: Tensor, kv_len: int) -> Tensor:
    """float32 [blocks, D]: means over the tokens of each block below `kv_len`, 0 if none."""
    means = [x[b.begin : min(b.end, kv_len)].float() for b in blocks]
    return torch.stack([m.mean(0) if len(m) else x.new_zeros(x.shape[1]).float() for m in means])


def _best_blocks(call: Call, q: Tensor, k: Tensor, kv_len: int) -> Tensor:
    """rainfusion2: each query block's best key blocks by the scores of the block means."""
    q_means = _block_means(call.q_blocks, q, kv_len)
    k_means = _block_means(call.k_blocks, k, kv_len)
    scores = q_means @ k_means.T * call.scale
    empty = torch.tensor([block.begin >= kv_len for block in call.k_blocks], device=call.device)
    scores = scores.masked_fill(empty, -math.inf)
    keep = kept_blocks(call.sparsity, len(call.k_blocks))
    best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :keep]
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
    return mask | always_kept(call.layout, call.shape, call.device)
