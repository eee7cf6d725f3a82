"""Random token layouts for property tests."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from rainfusion_trt.operator.exact_frames import ranges_of
from rainfusion_trt.operator.geometry import TokenLayout


def token_layouts(max_frames: int, max_side: int) -> st.SearchStrategy[TokenLayout]:
    """Grids, text lengths, sink and exact frames of every kind, odd ones above all."""
    sides = st.integers(1, max_side)
    return st.builds(
        lambda grid, extra, place, first, last, exact: TokenLayout(
            grid,
            math.prod(grid) + (0 if place == "none" else extra),
            place,
            first,
            last,
            ranges_of([frame for frame in exact if frame < grid[0]]),
        ),
        st.tuples(st.integers(1, max_frames), sides, sides),
        st.integers(0, 300),
        st.sampled_from(["none", "first", "last"]),
        st.integers(0, max_frames + 1),
        st.one_of(st.just(0), st.integers(1, 3), st.integers(1, max_frames + 1)),
        st.one_of(st.just(()), st.lists(st.integers(0, max_frames - 1), max_size=4)),
    )


def sinks_of(layout: TokenLayout) -> tuple[int, int]:
    """Sink frames at the begin and at the end of a clip."""
    return layout.sink_frames, layout.last_sink_frames


def exact_of(layout: TokenLayout) -> list[int]:
    """The exact frames of a clip, each by itself."""
    return [frame for begin, end in layout.exact_frames for frame in range(begin, end)]


def places_of(layout: TokenLayout) -> dict[str, Any]:
    """The arguments that tell an operator of a layout, besides its grid."""
    first, last = sinks_of(layout)
    return {
        "text": layout.text,
        "sink_frames": first,
        "last_sink_frames": last,
        "exact_frames": layout.exact_frames,
    }
