"""Sampled query rows in float32, against which every timed case is checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.attention.plan import PlannedLists
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.geometry import (
    BlockShape,
    Kind,
    TokenLayout,
    band_of,
    pair_mask,
    stride_of,
)

TOLERANCE = 1e-2  # relative, bfloat16: rounding of probabilities and output
_ROWS = 64


@dataclass(frozen=True)
class SampledRows:
    """Rows of some heads as they should be.

    Attributes
    ----------
    heads
        (batch element, head): the first and last of each kind.
    rows
        int64 [R], tokens.
    wanted
        float32 [heads, R, D].
    """

    heads: list[tuple[int, int]]
    rows: Tensor
    wanted: Tensor

    def error(self, out: Tensor, positions: Tensor | None = None) -> float:
        """Largest relative error of a head of `out` [B, N, S, D].

        Parameters
        ----------
        positions
            Position of each token in `out`, if not its own.
        """
        rows = self.rows if positions is None else positions[self.rows]
        errors = [
            (out[b, h][rows].float() - wanted).norm() / wanted.norm()
            for (b, h), wanted in zip(self.heads, self.wanted, strict=True)
        ]
        return torch.stack(errors).max().item()


def sampled_rows(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, lists: PlannedLists
) -> SampledRows:
    """Attention in float32 of sampled rows over the keys that `lists` keep.

    The blocks of spatial and temporal heads are those of the reference, which counts token pairs;
    random lists are taken as they are.
    """
    rows = _rows(layout, lists.shape).to(q.device)
    heads = []
    for kind in lists.kind.unique().tolist():
        found = (lists.kind == kind).nonzero().tolist()
        heads += [(b, h) for b, h in ([found[0], found[-1]] if len(found) > 1 else found)]
    wanted = []
    for b, h in heads:
        scores = q[b, h, rows].float() @ k[b, h].float().T / math.sqrt(q.shape[-1])
        scores.masked_fill_(~_keys(layout, lists, b, h, rows), -math.inf)
        wanted.append(scores.softmax(-1) @ v[b, h].float())
    return SampledRows(heads, rows, torch.stack(wanted))


def _rows(layout: TokenLayout, shape: BlockShape) -> Tensor:
    """Both ends of text, sinks, the other tokens and the blocks beside them; the rest at random."""
    edges = {0, layout.tokens - 1, layout.video_begin, layout.free_begin}
    for size in shape:
        edges |= {block.end - 1 for block in layout.blocks(size)[-4:]}
        edges |= {block.begin for block in layout.blocks(size)[-4:]}
    order = torch.randperm(layout.tokens, generator=torch.Generator().manual_seed(0))
    return torch.tensor(sorted(edges | set(order[:_ROWS].tolist())))


def _keys(layout: TokenLayout, lists: PlannedLists, b: int, h: int, rows: Tensor) -> Tensor:
    """bool [R, S]: the keys that these rows attend to."""
    q_block_of, k_block_of = (_block_of(layout, size, rows.device) for size in lists.shape)
    kind = Kind(int(lists.kind[b, h]))
    if kind is Kind.TEXTURAL:
        blocks = layout.blocks(lists.shape.q)
        sink = torch.tensor([block.sink for block in blocks], device=rows.device)
        return sink[q_block_of[rows]][:, None] | _textural_keys(layout, lists.sparsity, rows.device)
    if kind is Kind.BLOCKS:
        mask = lists.kept[b, h]
    else:
        band = 0 if kind is Kind.DENSE else band_of(lists.sparsity)
        mask = reference_mask(layout, kind, band, lists.shape, rows.device)
    return mask[q_block_of[rows]][:, k_block_of]


def _block_of(layout: TokenLayout, size: int, device: torch.device) -> Tensor:
    """int64 [S]: the block of `size` tokens that each token is in."""
    lengths = torch.tensor([b.end - b.begin for b in layout.blocks(size)], device=device)
    return torch.arange(len(lengths), device=device).repeat_interleave(lengths)


def _textural_keys(layout: TokenLayout, sparsity: float, device: torch.device) -> Tensor:
    """bool [S]: sinks and the checkerboard."""
    keys = layout.is_sink().to(device)
    free = torch.arange(layout.free_tokens, device=device)
    kept = pair_mask(layout, Kind.TEXTURAL, stride_of(sparsity), free, free)
    keys[layout.free_begin : layout.free_begin + layout.free_tokens] = kept
    return keys


@lru_cache(maxsize=16)  # seconds each for the long sequences, and shared by several cases
def reference_mask(
    layout: TokenLayout, kind: Kind, band: int, shape: BlockShape, device: torch.device
) -> Tensor:
    """`reference.block_mask`, kept for the next case."""
    return reference.block_mask(layout, kind, band, shape, device)
