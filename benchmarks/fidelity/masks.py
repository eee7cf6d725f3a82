"""Make token masks [S, S] of kinds of heads and of baselines.

The kinds' masks come from the reference itself (`rainfusion_trt.operator.reference.block_mask`,
`rainfusion_trt.operator.geometry.pair_mask`); this module combines them for masked attention.
Masks made of blocks take the operator's block shape at the head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rainfusion_trt.operator.geometry import (
    BAND_UNIT,
    BlockShape,
    Kind,
    TokenLayout,
    always_kept,
    band_of,
    pair_mask,
    stride_of,
)
from rainfusion_trt.operator.reference import block_mask


def kind_mask(
    layout: TokenLayout,
    shape: BlockShape,
    kind: Kind,
    sparsity: float,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Pairs that the operator computes for a kind of head, bool [S, S], blocks counted whole."""
    if kind is Kind.DENSE:
        return torch.ones(layout.tokens, layout.tokens, dtype=torch.bool, device=device)
    if kind is Kind.TEXTURAL:
        free = torch.arange(layout.free_tokens, device=device)
        return _keys_mask(layout, shape, pair_mask(layout, kind, stride_of(sparsity), free, free))
    return expand_blocks(layout, shape, block_mask(layout, kind, band_of(sparsity), shape, device))


def shifted_textural_mask(
    layout: TokenLayout, shape: BlockShape, sparsity: float, device: str | torch.device = "cpu"
) -> Tensor:
    """A textural head whose checkerboard moves by one place a frame, bool [S, S].

    As many keys as in the operator, but no place is left out in all frames.
    """
    free = torch.arange(layout.free_tokens, device=device)
    frame, place = free // layout.frame, free % layout.frame
    width = layout.grid[2]
    kept = (place // width - place % width + frame) % stride_of(sparsity) == 0
    return _keys_mask(layout, shape, kept)


def pairs_mask(
    layout: TokenLayout, kind: Kind, band: int, device: str | torch.device = "cpu"
) -> Tensor:
    """A spatial or temporal head by token pairs, without blocks: bool [S, S], sinks kept."""
    mask = torch.ones(layout.tokens, layout.tokens, dtype=torch.bool, device=device)
    free = torch.arange(layout.free_tokens, device=device)
    mask[_free(layout), _free(layout)] = pair_mask(layout, kind, band, free[:, None], free)
    return mask


def share_mask(
    layout: TokenLayout,
    shape: BlockShape,
    kind: Kind,
    band: int,
    share: float,
    device: str | torch.device = "cpu",
    *,
    place_major: bool = False,
) -> Tensor:
    """Blocks with at least a share of their token pairs in the kind's mask, bool [S, S].

    Parameters
    ----------
    share
        0 keeps blocks with any pair; 0.5 is the operator's rule.
    place_major
        Cut blocks of non-sink tokens in the order of place, then frame, instead of the raster; the
        mask returned is in memory order all the same.
    """
    pairs = pairs_mask(layout, kind, band, device)
    order = place_major_order(layout, device)
    if place_major:
        pairs = pairs[order][:, order]
    blocks, sizes = _block_sums(layout, shape, pairs), _block_sizes(layout, shape, device)
    kept = (blocks >= share * sizes) & (blocks > 0)
    mask = expand_blocks(layout, shape, kept | always_kept(layout, shape, device))
    if place_major:
        back = order.argsort()
        mask = mask[back][:, back]
    return mask


def place_major_order(layout: TokenLayout, device: str | torch.device = "cpu") -> Tensor:
    """int64 [S]: tokens with the non-sink ones sorted by place, then frame."""
    order = torch.arange(layout.tokens, device=device)
    free = order[_free(layout)].clone()
    order[_free(layout)] = free.view(layout.free_frames, layout.frame).T.flatten()
    return order


def window_mask(layout: TokenLayout, width: int, device: str | torch.device = "cpu") -> Tensor:
    """Non-sink tokens less than `width` apart in the raster; bool [S, S], sinks kept."""
    mask = torch.ones(layout.tokens, layout.tokens, dtype=torch.bool, device=device)
    free = torch.arange(layout.free_tokens, device=device)
    mask[_free(layout), _free(layout)] = (free[:, None] - free).abs() < width
    return mask


def random_mask(
    layout: TokenLayout, shape: BlockShape, share: float, generator: torch.Generator
) -> Tensor:
    """Blocks that every kind keeps, and random others until the share of pairs is near `share`.

    On the generator's device. Nothing is added if the former exceed the share.
    """
    device = generator.device
    always = always_kept(layout, shape, device)
    sizes = _block_sizes(layout, shape, device)
    open_pairs = (~always).nonzero()
    wanted = share * layout.tokens**2 - (sizes * always).sum().item()
    area = (sizes * ~always).sum().item()
    count = round(len(open_pairs) * min(1.0, max(0.0, wanted / area))) if area else 0
    order = torch.randperm(len(open_pairs), generator=generator, device=device)[:count]
    rows, columns = open_pairs[order].unbind(1)
    kept = always.clone()
    kept[rows, columns] = True
    return expand_blocks(layout, shape, kept)


def window_of_share(
    layout: TokenLayout, share: float, device: str | torch.device = "cpu"
) -> Tensor:
    """The sliding window whose share of pairs is nearest `share`."""
    return _nearest(lambda w: window_mask(layout, w, device), 1, layout.free_tokens, share)


def kind_of_share(
    layout: TokenLayout,
    shape: BlockShape,
    kind: Kind,
    share: float,
    device: str | torch.device = "cpu",
) -> Tensor:
    """The mask of a spatial or temporal head whose band brings it nearest `share`.

    Temporal heads take place-major blocks, as SVG lays them out: in small frames, few shares can
    be had from raster blocks.
    """
    place_major = kind is Kind.TEMPORAL

    def make(step: int) -> Tensor:
        band = step * BAND_UNIT // 1000  # a thousandth of the extent is finer than a block
        return share_mask(layout, shape, kind, band, 0.5, device, place_major=place_major)

    return _nearest(make, 1, 1000, share)


def density(mask: Tensor) -> float:
    """Share of pairs kept."""
    return mask.float().mean().item()


def expand_blocks(layout: TokenLayout, shape: BlockShape, blocks: Tensor) -> Tensor:
    """bool [S, S] of a block mask [q_blocks, k_blocks]."""
    queries, keys = (_lengths(layout, size, blocks.device) for size in shape)
    return blocks.repeat_interleave(queries, 0).repeat_interleave(keys, 1)


def without_sink_frames(layout: TokenLayout) -> TokenLayout:
    """The same tokens with text as the only sinks."""
    return replace(layout, sink_frames=0)


def _nearest(make: Callable[[int], Tensor], low: int, high: int, share: float) -> Tensor:
    """The mask nearest in share, of a family that grows with its parameter."""
    while high - low > 1:
        middle = (low + high) // 2
        if density(make(middle)) < share:
            low = middle
        else:
            high = middle
    return min((make(low), make(high)), key=lambda mask: abs(density(mask) - share))


def _keys_mask(layout: TokenLayout, shape: BlockShape, free_keys: Tensor) -> Tensor:
    """The same keys for all queries, sinks kept: bool [S, S] of bool [free tokens]."""
    keys = torch.ones(layout.tokens, dtype=torch.bool, device=free_keys.device)
    keys[_free(layout)] = free_keys
    sinks = torch.tensor([b.sink for b in layout.blocks(shape.q)], device=free_keys.device)
    lengths = _lengths(layout, shape.q, free_keys.device)
    return keys | sinks.repeat_interleave(lengths)[:, None]


def _free(layout: TokenLayout) -> slice:
    return slice(layout.free_begin, layout.free_begin + layout.free_tokens)


def _lengths(layout: TokenLayout, size: int, device: str | torch.device) -> Tensor:
    """int64 [blocks]: tokens in each block of `size`."""
    return torch.tensor([b.end - b.begin for b in layout.blocks(size)], device=device)


def _block_sizes(layout: TokenLayout, shape: BlockShape, device: str | torch.device) -> Tensor:
    """Token pairs of each block pair, float64."""
    queries, keys = (_lengths(layout, size, device) for size in shape)
    return (queries[:, None] * keys).double()


def _block_sums(layout: TokenLayout, shape: BlockShape, mask: Tensor) -> Tensor:
    """Kept token pairs of each block pair, float64."""
    sums = mask.double()
    for dim, size in enumerate(shape):
        lengths = _lengths(layout, size, mask.device)
        index = torch.arange(len(lengths), device=mask.device).repeat_interleave(lengths)
        into = list(sums.shape)
        into[dim] = len(lengths)
        sums = sums.new_zeros(into).index_add_(dim, index, sums)
    return sums
