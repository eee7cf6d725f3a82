"""The reference's block masks against token pairs, on random layouts and at every block shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import brute_force
from helpers.layouts import exact_of, sinks_of, token_layouts
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.geometry import BlockShape, Kind, TokenLayout, band_of, block_shape

head_sizes = pytest.mark.parametrize("head_size", [64, 96, 128])
kinds = pytest.mark.parametrize("kind", [Kind.SPATIAL, Kind.TEMPORAL], ids=lambda kind: kind.name)


def expanded(layout: TokenLayout, mask: torch.Tensor, shape: BlockShape) -> np.ndarray:
    """bool [S, S] of a block mask."""
    rows, columns = (
        torch.tensor([block.end - block.begin for block in layout.blocks(size)]) for size in shape
    )
    return mask.repeat_interleave(rows, 0).repeat_interleave(columns, 1).numpy()


def check(layout: TokenLayout, kind: Kind, sparsity: float, head_size: int) -> None:
    shape = block_shape(head_size)
    mask = reference.block_mask(layout, kind, band_of(sparsity), shape)
    assert mask.shape == (len(layout.blocks(shape.q)), len(layout.blocks(shape.k)))
    wanted = brute_force.attended(
        kind.name.lower(),
        sparsity,
        layout.grid,
        layout.tokens,
        layout.text,
        sinks_of(layout),
        head_size,
        exact_of(layout),
    )
    np.testing.assert_array_equal(expanded(layout, mask, shape), wanted)


@head_sizes
@kinds
@settings(max_examples=50, deadline=None)
@given(layout=token_layouts(7, 13), sparsity=st.floats(0.01, 0.99))
def test_random_layouts(head_size, kind, layout, sparsity):
    check(layout, kind, sparsity, head_size)


@head_sizes
@kinds
@pytest.mark.parametrize("text", ["first", "last"])
@pytest.mark.parametrize("text_tokens", [1, 127, 129, 191, 193])
@pytest.mark.parametrize("frame", [1, 127, 129, 191, 193])
def test_lengths_beside_a_block(head_size, kind, text, text_tokens, frame):
    for last in (0, 1):
        layout = TokenLayout((5, 1, frame), 5 * frame + text_tokens, text, 1, last)
        check(layout, kind, 0.8, head_size)


@head_sizes
def test_dense_keeps_every_block(head_size):
    layout = TokenLayout((5, 9, 11), 5 * 99 + 37, "last")
    assert reference.block_mask(layout, Kind.DENSE, 0, block_shape(head_size)).all()


@kinds
def test_square_blocks_are_symmetric(kind):
    """Both bands are, and a block shares a token with itself alone."""
    layout = TokenLayout((16, 16, 16), 4096 + 200, "last")
    mask = reference.block_mask(layout, kind, 100_000, BlockShape(128, 128))
    assert torch.equal(mask, mask.T)
    assert mask.diagonal().all()
    assert not mask.all()
