"""The kernels' closed-form block rule against the reference, which counts token pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.layouts import token_layouts
from rainfusion_trt.operator import native, native_types, reference
from rainfusion_trt.operator.geometry import BlockShape, Kind, TokenLayout, band_of, block_shape

DEFAULT = BlockShape(0, 0)
head_sizes = pytest.mark.parametrize("head_size", [64, 96, 128])


def native_mask(
    library,
    layout: TokenLayout,
    kind: Kind,
    sparsity: float,
    head_size: int,
    blocks: BlockShape = DEFAULT,
) -> np.ndarray:
    problem = native.Problem(
        1,
        1,
        layout.tokens,
        head_size,
        *layout.grid,
        sink_frames=layout.sink_frames,
        last_sink_frames=layout.last_sink_frames,
        alpha=0.9,
        text=native.Text[layout.text.upper()],
        block_q=blocks.q,
        block_k=blocks.k,
        method=native.Method.RAINFUSION_TWO_WAY,
        exact_frames=native_types.exact_frames(layout.exact_frames),
    )
    return library.block_mask_host(problem, kind, sparsity)


@pytest.fixture(scope="module")
def library(plugin_library):
    return native.load_library(plugin_library)


@head_sizes
@settings(max_examples=200, deadline=None)
@given(
    layout=token_layouts(12, 33),
    kind=st.sampled_from([Kind.SPATIAL, Kind.TEMPORAL]),
    sparsity=st.floats(0.01, 0.99),
)
def test_random_grids(library, head_size, layout, kind, sparsity):
    shape = block_shape(head_size)
    wanted = reference.block_mask(layout, kind, band_of(sparsity), shape).numpy()
    if layout.always_dense:  # whatever the kind asked for
        wanted[:] = True
    np.testing.assert_array_equal(native_mask(library, layout, kind, sparsity, head_size), wanted)


@settings(max_examples=200, deadline=None)
@given(
    layout=token_layouts(8, 21),
    kind=st.sampled_from([Kind.SPATIAL, Kind.TEMPORAL]),
    sparsity=st.floats(0.01, 0.99),
    blocks=st.builds(
        BlockShape, st.integers(2, 12).map(lambda n: 32 * n), st.sampled_from([1, 33, 64, 300])
    ),
)
def test_shapes_that_a_problem_asks_for(library, layout, kind, sparsity, blocks):
    wanted = reference.block_mask(layout, kind, band_of(sparsity), blocks).numpy()
    if layout.always_dense:
        wanted[:] = True
    mask = native_mask(library, layout, kind, sparsity, 64, blocks)
    assert mask.shape == tuple(len(layout.blocks(size)) for size in blocks)
    np.testing.assert_array_equal(mask, wanted)


@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_a_shape_may_be_asked_for_in_part(library, head_size):
    layout = TokenLayout((5, 19, 23), 5 * 19 * 23 + 1, "last")
    usual = block_shape(head_size)
    mask = native_mask(library, layout, Kind.SPATIAL, 0.7, head_size, BlockShape(0, 48))
    wanted = reference.block_mask(layout, Kind.SPATIAL, band_of(0.7), BlockShape(usual.q, 48))
    np.testing.assert_array_equal(mask, wanted.numpy())


@head_sizes
@pytest.mark.parametrize("sparsity", [0.5, 0.64, 0.8])
@pytest.mark.parametrize("kind", [Kind.SPATIAL, Kind.TEMPORAL], ids=lambda kind: kind.name)
def test_cogvideox_5b(library, kind, sparsity, head_size):
    layout = TokenLayout((13, 30, 45), 17776, "first")
    shape = block_shape(head_size)
    wanted = reference.block_mask(layout, kind, band_of(sparsity), shape).numpy()
    np.testing.assert_array_equal(native_mask(library, layout, kind, sparsity, head_size), wanted)


@head_sizes
def test_dense_keeps_every_block(library, head_size):
    layout = TokenLayout((5, 19, 23), 5 * 19 * 23 + 1, "last")
    assert native_mask(library, layout, Kind.DENSE, 0.5, head_size).all()
