"""Random token layouts for property tests."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from rainfusion_trt.operator.geometry import TokenLayout


def token_layouts(max_frames: int, max_side: int) -> st.SearchStrategy[TokenLayout]:
    """Grids, text lengths, text places and sink frames of every kind, odd ones above all."""
    sides = st.integers(1, max_side)
    return st.builds(
        lambda grid, extra, place, sinks: TokenLayout(
            grid, math.prod(grid) + (0 if place == "none" else extra), place, sinks
        ),
        st.tuples(st.integers(1, max_frames), sides, sides),
        st.integers(0, 300),
        st.sampled_from(["none", "first", "last"]),
        st.integers(0, max_frames + 1),
    )
