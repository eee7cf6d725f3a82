"""Bands, strides, blocks and samples: fixed points, and properties on random grids."""

from __future__ import annotations

import math

import pytest
from hypothesis import given

from helpers.layouts import token_layouts
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.geometry import (
    SAMPLE_TOKENS,
    TokenLayout,
    band_of,
    band_width,
    block_shape,
    kept_blocks,
    stride_of,
)

layouts = token_layouts(9, 50)


@pytest.mark.parametrize(
    ("sparsity", "stride"), [(0.01, 2), (0.5, 2), (0.6, 2), (0.64, 3), (0.8, 5), (0.9, 10)]
)
def test_stride_rounds_halves_to_even(sparsity, stride):
    assert stride_of(sparsity) == stride


@pytest.mark.parametrize(("sparsity", "band"), [(0.25, 500_000), (0.64, 200_000), (0.81, 100_000)])
def test_band_in_millionths(sparsity, band):
    assert band_of(sparsity) == band


def test_band_width_is_the_number_of_distances_below_the_band():
    assert band_width(200_000, 1000) == 200
    assert band_width(200_000, 1001) == 201
    assert band_width(0, 1000) == 1


@pytest.mark.parametrize(
    ("sparsity", "count", "kept"), [(0.8, 10, 2), (0.5, 139, 70), (0.9, 929, 93), (0.3, 10, 7)]
)
def test_kept_blocks(sparsity, count, kept):
    assert kept_blocks(sparsity, count) == kept


@pytest.mark.parametrize(
    ("head_sizes", "shape"),
    [((1, 16, 64), (192, 128)), ((65, 80, 96), (192, 96)), ((97, 128, 256), (192, 80))],
)
def test_block_shape(head_sizes, shape):
    assert all(block_shape(head_size) == shape for head_size in head_sizes)


@pytest.mark.parametrize("size", [80, 96, 128, 192])
@given(layouts)
def test_blocks_cover_every_token_once_in_order(size, layout):
    end = 0
    for block in layout.blocks(size):
        assert block.begin == end
        assert 0 < block.end - block.begin <= size
        # Short ones only at the end of the text and of the video.
        ends = {layout.video_begin + layout.video_tokens, layout.text_begin + layout.text_tokens}
        assert block.end - block.begin == size or block.end in ends
        assert not block.begin < layout.video_begin < block.end
        assert not block.begin < layout.text_begin < block.end
        end = block.end
        assert block.sink == bool(layout.is_sink()[block.begin : block.end].any())
    assert end == layout.tokens


@given(layouts.filter(lambda layout: layout.free_tokens > 0))
def test_samples_stay_inside_and_below_the_limit(layout):
    step, count = layout.local_sample()
    assert count <= SAMPLE_TOKENS
    assert (count - 1) * step < layout.frame <= count * step
    step, count = layout.global_sample()
    assert count <= min(SAMPLE_TOKENS, layout.frame)
    assert math.gcd(step, layout.grid[2]) == 1
    assert (count - 1) * step < layout.free_tokens <= count * step


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"grid": (4, 8, 8), "tokens": 255}, "fewer than"),
        ({"grid": (4, 8, 8), "tokens": 257}, "text='none'"),
        ({"grid": (4, 0, 8), "tokens": 257}, "positive"),
        ({"grid": (4, 8, 8), "tokens": 257, "text": "middle"}, "middle"),
        ({"grid": (4, 8, 8), "tokens": 256, "sink_frames": -1}, "sink_frames=-1"),
        ({"grid": (4, 8, 8), "tokens": 256, "last_sink_frames": -1}, "last_sink_frames=-1"),
    ],
)
def test_what_does_not_add_up_is_refused(arguments, words):
    with pytest.raises(InvalidInputError, match=words):
        TokenLayout(**arguments)
