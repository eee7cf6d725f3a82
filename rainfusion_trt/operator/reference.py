"""The operator in plain PyTorch: the meaning of RainFusionAttention, without speed.

Every mask is counted from token pairs and every softmax is computed in float32 over an explicit
list of keys, so that the kernels have something independent to be compared with. Follows RainFusion
(arXiv 2505.21036, sections 3.2 and 3.3) and RainFusion2.0 (arXiv 2512.24086) as laid down in
``docs/rainfusion.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
    block_shape,
    kept_blocks,
    pair_mask,
    stride_of,
)
from rainfusion_trt.operator.plan import HeadPlan
from rainfusion_trt.operator.settings import AttentionSettings

__all__ = ["attention", "block_mask", "classify", "classify_heads", "rainfusion_attention"]

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
class _Call:
    """One call's constants, and what several heads of it share."""

    layout: TokenLayout
    shape: BlockShape
    sparsity: float
    method: str
    alpha: float
    scale: float
    device: torch.device
    q_blocks: list[Block] = field(init=False)
    k_blocks: list[Block] = field(init=False)
    _masks: dict[tuple[Kind, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.q_blocks = self.layout.blocks(self.shape.q)
        self.k_blocks = self.layout.blocks(self.shape.k)

    @property
    def dense(self) -> bool:
        return not self.sparsity > 0 or self.layout.always_dense

    def mask(self, kind: Kind, band: int) -> Tensor:
        if (kind, band) not in self._masks:
            mask = block_mask(self.layout, kind, band, self.shape, self.device)
            self._masks[kind, band] = mask
        return self._masks[kind, band]

    def textural_keys(self) -> Tensor:
        """bool [S]: sinks and checkerboard keys."""
        layout = self.layout
        keys = layout.is_sink().to(self.device)
        free = torch.arange(layout.free_tokens, device=self.device)
        kept = pair_mask(layout, Kind.TEXTURAL, stride_of(self.sparsity), free, free)
        keys[layout.free_begin : layout.free_begin + layout.free_tokens] = kept
        return keys


@dataclass(frozen=True)
class _Head:
    """ARM's decision for one head."""

    kind: Kind
    recall_temporal: float
    recall_spatial: float
    mask: Tensor | None  # block mask, None for textural heads


def _recall(
    call: _Call, q: Tensor, k: Tensor, kind: Kind, bands: Sequence[int], kv_len: int
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


def _choose(call: _Call, q: Tensor, k: Tensor, kv_len: int) -> _Head:
    """ARM for one head: q, k [S, D]."""
    if call.dense:
        return _Head(Kind.DENSE, _NAN, _NAN, call.mask(Kind.DENSE, 0))
    if call.method == "rainfusion2":
        return _Head(Kind.BLOCKS, _NAN, _NAN, _best_blocks(call, q, k, kv_len))

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
        return _Head(Kind.TEMPORAL, *recalls, call.mask(Kind.TEMPORAL, bands[at_t]))
    if at_s is not None:
        return _Head(Kind.SPATIAL, *recalls, call.mask(Kind.SPATIAL, bands[at_s]))
    return _Head(Kind.TEXTURAL, *recalls, None)


def _block_means(blocks: Sequence[Block], x: Tensor, kv_len: int) -> Tensor:
    """float32 [blocks, D]: means over the tokens of each block below `kv_len`, 0 if none."""
    means = [x[b.begin : min(b.end, kv_len)].float() for b in blocks]
    return torch.stack([m.mean(0) if len(m) else x.new_zeros(x.shape[1]).float() for m in means])


def _best_blocks(call: _Call, q: Tensor, k: Tensor, kv_len: int) -> Tensor:
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


def _key_masks(call: _Call, head: _Head, kv_len: int) -> list[Tensor]:
    """bool [S] per query block: the keys its rows attend to."""
    real = torch.arange(call.layout.tokens, device=call.device) < kv_len
    if head.mask is None:
        textural = call.textural_keys()
        return [real if block.sink else real & textural for block in call.q_blocks]
    lengths = torch.tensor([b.end - b.begin for b in call.k_blocks], device=call.device)
    return [real & row.repeat_interleave(lengths) for row in head.mask]


def _attend(
    call: _Call, head: _Head, q: Tensor, k: Tensor, v: Tensor, kv_len: int
) -> tuple[Tensor, Tensor]:
    """Attention of one head in float32: q, k, v [S, D] -> [S, D] and log-sum-exp [S]."""
    out = torch.zeros_like(v, dtype=torch.float32)
    lse = out.new_full(out.shape[:1], -math.inf)
    for block, keys in zip(call.q_blocks, _key_masks(call, head, kv_len), strict=True):
        if not keys.any():
            continue
        scores = q[block.begin : block.end].float() @ k[keys].float().T * call.scale
        out[block.begin : block.end] = torch.softmax(scores, dim=-1) @ v[keys].float()
        lse[block.begin : block.end] = torch.logsumexp(scores, dim=-1)
    return out, lse


def _density(call: _Call, head: _Head, kv_len: int) -> float:
    pairs = sum(
        int(keys.sum()) * (block.end - block.begin)
        for block, keys in zip(call.q_blocks, _key_masks(call, head, kv_len), strict=True)
    )
    return pairs / max(1, call.layout.tokens * kv_len)


def _start(
    q: Tensor, grid: Sequence[int], sparsity: float | Tensor, settings: AttentionSettings
) -> _Call:
    head_size = q.shape[-1]
    return _Call(
        TokenLayout.of(grid, q.shape[2], settings),
        block_shape(head_size),
        float(sparsity),
        settings.method,
        settings.alpha,
        settings.softmax_scale(head_size),
        q.device,
    )


def _lengths(q: Tensor, kv_len: Tensor | None) -> list[int]:
    if kv_len is None:
        return [q.shape[2]] * q.shape[0]
    return kv_len.clamp(0, q.shape[2]).tolist()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    sparsity: float | Tensor,
    kv_len: Tensor | None,
    settings: AttentionSettings,
    *,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """RainFusion attention under collected settings: output and, if asked for, log-sum-exp."""
    call = _start(q, grid, sparsity, settings)
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    for b, length in enumerate(_lengths(q, kv_len)):
        for h in range(q.shape[1]):
            head = _choose(call, q[b, h], k[b, h], length)
            out[b, h], lse[b, h] = _attend(call, head, q[b, h], k[b, h], v[b, h], length)
    return out, lse if return_lse else None


def classify(
    q: Tensor,
    k: Tensor,
    grid: Sequence[int],
    sparsity: float | Tensor,
    kv_len: Tensor | None,
    settings: AttentionSettings,
) -> HeadPlan:
    """ARM alone, under collected settings."""
    call = _start(q, grid, sparsity, settings)
    rows = []
    for b, length in enumerate(_lengths(q, kv_len)):
        for h in range(q.shape[1]):
            head = _choose(call, q[b, h], k[b, h], length)
            rows.append(
                (
                    head.kind,
                    head.recall_temporal,
                    head.recall_spatial,
                    _density(call, head, length),
                )
            )
    table = torch.tensor(rows, dtype=torch.float64, device=q.device).view(*q.shape[:2], 4)
    kind, temporal, spatial, density = table.unbind(-1)
    return HeadPlan(kind.int(), temporal.float(), spatial.float(), density.float())


def rainfusion_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    *,
    sparsity: float | Tensor = 0.5,
    kv_len: Tensor | None = None,
    return_lse: bool = False,
    **settings: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """RainFusion attention; arguments as :func:`rainfusion_trt.rainfusion_attention`.

    Returns
    -------
    Tensor
        [B, N, S, D] in the dtype of `q`; rows that attend to no key are 0.
    Tensor, with `return_lse`
        float32 [B, N, S]: log-sum-exp of the scaled scores; rows that attend to no key are
        -infinity.
    """
    collected = AttentionSettings.of(**settings)
    out, lse = attention(q, k, v, grid, sparsity, kv_len, collected, return_lse=return_lse)
    return out if lse is None else (out, lse)


def classify_heads(
    q: Tensor,
    k: Tensor,
    grid: Sequence[int],
    *,
    sparsity: float | Tensor = 0.5,
    kv_len: Tensor | None = None,
    **settings: Any,
) -> HeadPlan:
    """ARM alone; arguments as :func:`rainfusion_trt.classify_heads`.

    Returns
    -------
    HeadPlan
        Tensors of shape [B, N] on the device of `q`.
    """
    return classify(q, k, grid, sparsity, kv_len, AttentionSettings.of(**settings))
