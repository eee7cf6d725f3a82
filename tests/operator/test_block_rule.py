"""The kernels' closed-form block rule against the reference, which counts token pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.layouts import token_layouts
from rainfusion_trt.operator import native, reference
from rainfusion_trt.operator.geometry import Kind, TokenLayout, band_of, block_shape

head_sizes = pytest.mark.parametrize("head_size", [64, 96, 128])


def native_mask(
    library, layout: TokenLayout, kind: Kind, sparsity: float, head_size: int
) -> np.ndarray:
    problem = native.Problem(
        1,
        1,
        layout.tokens,
        head_size,
        *layout.grid,
        sink_frames=layout.sink_frames,
        alpha=0.9,
        text=native.Text[layout.text.upper()],
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
