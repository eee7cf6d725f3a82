"""The kernels' closed-form block rule against the reference, which counts token pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import token_layouts

from rainfusion_trt import native, reference
from rainfusion_trt.geometry import Kind, TokenLayout, band_of


def native_mask(library, layout: TokenLayout, kind: Kind, sparsity: float) -> np.ndarray:
    problem = native.Problem(
        1,
        1,
        layout.tokens,
        64,
        *layout.grid,
        sink_frames=layout.sink_frames,
        alpha=0.9,
        text=native.Text[layout.text.upper()],
    )
    return library.block_mask_host(problem, kind, sparsity)


@pytest.fixture(scope="module")
def library(plugin_library):
    return native.load_library(plugin_library)


@settings(max_examples=200, deadline=None)
@given(token_layouts(12, 33), st.sampled_from([Kind.SPATIAL, Kind.TEMPORAL]), st.floats(0.01, 0.99))
def test_random_grids(library, layout, kind, sparsity):
    wanted = reference.block_mask(layout, kind, band_of(sparsity)).numpy()
    if layout.always_dense:  # whatever the kind asked for
        wanted[:] = True
    np.testing.assert_array_equal(native_mask(library, layout, kind, sparsity), wanted)


@pytest.mark.parametrize("sparsity", [0.5, 0.64, 0.8])
@pytest.mark.parametrize("kind", [Kind.SPATIAL, Kind.TEMPORAL], ids=lambda kind: kind.name)
def test_cogvideox_5b(library, kind, sparsity):
    layout = TokenLayout((13, 30, 45), 17776, "first")
    wanted = reference.block_mask(layout, kind, band_of(sparsity)).numpy()
    np.testing.assert_array_equal(native_mask(library, layout, kind, sparsity), wanted)


def test_dense_keeps_every_block(library):
    layout = TokenLayout((5, 19, 23), 5 * 19 * 23 + 1, "last")
    assert native_mask(library, layout, Kind.DENSE, 0.5).all()
