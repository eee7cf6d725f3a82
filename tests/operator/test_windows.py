"""Windows: shapes against brute force and the documented table, cuts on random layouts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers import brute_force, brute_windows
from helpers.layouts import exact_of, sinks_of, token_layouts
from rainfusion_trt.operator.exact_frames import ranges_of
from rainfusion_trt.operator.geometry import TokenLayout, block_shape
from rainfusion_trt.operator.windows import (
    WindowCut,
    single_window,
    window_shape,
    windows_cross,
    windows_meet,
)
from rainfusion_trt.plugin.build import source_directory

SIZES = (192, 128, 96, 80)
layouts = token_layouts(9, 30).filter(lambda layout: layout.free_tokens > 0)


@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70)),
    frames=st.sampled_from([2, 16]),
)
def test_shape_is_the_cheapest_box(size, grid, frames):
    assert window_shape(grid, size, frames) == brute_windows.best_box(grid, size, frames)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "grid",
    [(2, 1, 1), (2, 1, 500), (2, 500, 1), (16, 1, 5), (17, 1, 5), (100, 1, 1), (20, 45, 80)],
)
def test_shape_at_the_edges(size, grid):
    box = window_shape(grid, size)
    assert box == brute_windows.best_box(grid, size)
    assert math.prod(box) <= size and box[0] <= 16


def documented():
    """Rows of the table: grid, head size, query and key windows."""
    text = (source_directory() / "docs" / "rainfusion.md").read_text()
    section = text.split("## Piecewise")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]

    def extents(cell):
        return tuple(int(word) for word in cell.split(",")[0].split(" x "))

    return [
        (extents(grid), int(size), extents(q), extents(k))
        for grid, size, q, k in rows
        if size.strip().isdigit()
    ]


def test_the_documents_table_is_the_rule():
    rows = documented()
    assert len(rows) == 5
    for grid, head_size, q, k in rows:
        shape = block_shape(head_size)
        assert (window_shape(grid, shape.q), window_shape(grid, shape.k)) == (q, k)


@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(2, 20),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    most=st.sampled_from([2, 16]),
)
def test_a_single_window_is_told_without_the_search(size, frames, height, width, most):
    box = window_shape((frames, height, width), size, most)
    assert single_window(frames, height * width, size, most) == (box == (frames, height, width))


@pytest.mark.parametrize("head_size", [64, 96, 128])
@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(2, 20),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    exact=st.one_of(st.just([]), st.lists(st.integers(0, 19), max_size=4)),
)
@example(frames=6, height=8, width=8, exact=[])
@example(frames=16, height=13, width=7, exact=[])
@example(frames=4, height=8, width=8, exact=[0])
@example(frames=5, height=24, width=24, exact=[0, 2, 4])
def test_windows_that_are_all_kept_are_told_without_pairs(head_size, frames, height, width, exact):
    shape = block_shape(head_size)
    grid = (frames, height, width)
    ranges = ranges_of([frame for frame in exact if frame < frames])
    layout = TokenLayout(grid, math.prod(grid), "none", 0, 0, ranges)
    q_cut, k_cut = (WindowCut(layout, size) for size in shape)
    kept = windows_meet(q_cut, k_cut) | q_cut.is_exact()[:, None] | k_cut.is_exact()
    assert windows_cross(*grid, *shape, ranges) == bool(kept.all())


@settings(max_examples=60, deadline=None)
@given(layout=layouts, size=st.sampled_from(SIZES))
def test_exact_windows_hold_an_exact_token(layout, size):
    places = (layout.grid, layout.tokens, layout.text)
    windows = brute_windows.windows_of(*places, sinks_of(layout), size, exact_of(layout))
    is_exact = brute_force.exact_tokens(*places, exact_of(layout))
    wanted = [bool(is_exact[window].any()) for window in windows]
    assert WindowCut(layout, size).is_exact().tolist() == wanted


@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=30, deadline=None)
@given(layout=layouts)
def test_runs_and_windows_hold_every_token_once(size, layout):
    cut = WindowCut(layout, size)
    runs = cut.sink_runs()
    assert all(0 < end - begin <= size for begin, end in runs)
    assert [begin for begin, _ in runs] == sorted(begin for begin, _ in runs)
    assert len(runs) == cut.leading_sinks + cut.trailing_sinks == cut.blocks - cut.windows
    tokens = cut.tokens_of()
    assert tokens.shape[0] == cut.windows and tokens.shape[1] == math.prod(cut.box) <= size
    held = [t for begin, end in runs for t in range(begin, end)] + tokens[tokens >= 0].tolist()
    assert sorted(held) == list(range(layout.tokens))
    wanted = brute_windows.windows_of(
        layout.grid, layout.tokens, layout.text, sinks_of(layout), size, exact_of(layout)
    )
    assert [row[row >= 0].tolist() for row in tokens] == wanted
    of = cut.window_of()
    assert torch.equal(of < 0, layout.is_sink())
    assert all((of[window] == i).all() for i, window in enumerate(wanted))


@settings(max_examples=30, deadline=None)
@given(layout=layouts, size=st.sampled_from(SIZES))
def test_the_middle_of_a_window_is_that_of_every_axis(layout, size):
    cut = WindowCut(layout, size)
    _, height, width = layout.grid
    middles = cut.middles().tolist()
    assert len(middles) == cut.windows
    for tokens, middle in zip(cut.tokens_of(), middles, strict=True):
        places = tokens[tokens >= 0] - layout.free_begin
        axes = (places // (height * width), places // width % height, places % width)
        t, h, w = (sorted(set(axis.tolist()))[len(set(axis.tolist())) // 2] for axis in axes)
        assert middle == layout.free_begin + (t * height + h) * width + w


@settings(max_examples=30, deadline=None)
@given(layout=layouts, head_size=st.sampled_from([64, 96, 128]))
def test_windows_meet_where_they_share_a_token(layout, head_size):
    q_cut, k_cut = (WindowCut(layout, size) for size in block_shape(head_size))
    wanted = np.zeros((q_cut.windows, k_cut.windows), bool)
    wanted[q_cut.window_of()[~layout.is_sink()], k_cut.window_of()[~layout.is_sink()]] = True
    assert np.array_equal(windows_meet(q_cut, k_cut).numpy(), wanted)
