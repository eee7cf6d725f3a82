"""Cuts into windows: aligned, disjoint, covering, and their sub-windows."""

import pytest
import torch

from benchmarks.film.scene import FULL, ONLINE, TINY
from benchmarks.film.windows import boxes, runs, sharing, sub_shape
from helpers.film_reference import box_tables, parts_of

SHAPES = [(scene, s) for scene in (FULL, TINY) for pair in scene.shapes.values() for s in pair]


@pytest.mark.parametrize(("scene", "shape"), SHAPES, ids=lambda x: str(getattr(x, "grid", x)))
def test_boxes_are_aligned_disjoint_and_cover(scene, shape):
    windows = boxes(scene.free_grid, shape)
    assert sorted(windows.tokens.flatten().tolist()) == list(range(scene.free))
    _, height, width = scene.free_grid
    t, y, x = windows.tokens // (height * width), windows.tokens // width % height, None
    x = windows.tokens % width
    for axis, side in zip((t, y, x), shape, strict=True):
        low, high = axis.amin(1), axis.amax(1)
        assert (low % side == 0).all()
        assert (high - low == side - 1).all()


@pytest.mark.parametrize("scene", [FULL, TINY], ids=["full", "tiny"])
def test_no_window_exceeds_its_tile(scene):
    for query, key in scene.shapes.values():
        for shape, most in zip((query, key), scene.tile, strict=True):
            assert torch.tensor(shape).prod() <= most
    assert set(ONLINE) <= set(scene.shapes)


def test_boxes_and_quarters_are_those_of_the_loops():
    shape = (2, 3, 4)
    windows = boxes((4, 6, 8), shape)
    quarter = windows.size // 4
    for found, wanted in zip(windows.tokens.tolist(), box_tables((4, 6, 8), shape), strict=True):
        assert sorted(found) == sorted(wanted)
        parts = [sorted(found[i : i + quarter]) for i in range(0, len(found), quarter)]
        cells = parts_of((4, 6, 8), wanted, shape, sub_shape(shape))
        assert sorted(parts) == sorted(sorted(cell) for cell in cells)


@pytest.mark.parametrize(
    ("shape", "quarter"),
    [
        ((4, 6, 8), (4, 3, 4)),
        ((3, 4, 10), (3, 2, 5)),
        ((12, 2, 5), (6, 1, 5)),
        ((1, 3, 8), (1, 3, 2)),
    ],
)
def test_quarters_halve_rows_and_columns_first(shape, quarter):
    assert sub_shape(shape) == quarter


def test_a_box_without_quarters_is_refused():
    with pytest.raises(ValueError, match="sub-windows"):
        sub_shape((3, 3, 2))


def test_a_shape_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="divide"):
        boxes((4, 6, 8), (3, 3, 4))
    with pytest.raises(ValueError, match="divide"):
        runs((4, 6, 8), 20)


def test_scatter_undoes_gather():
    x = torch.randn(2, 192, 3)
    for windows in (boxes((4, 6, 8), (2, 2, 4)), runs((4, 6, 8), 24)):
        assert torch.equal(windows.scatter(windows.gather(x)), x)


def test_means_and_centres_by_hand():
    windows = boxes((4, 6, 8), (2, 3, 4))
    x = torch.arange(192.0)[None, :, None]
    # frames 0 and 1, rows 0 to 2, columns 0 to 3
    assert windows.means(x)[0, 0, 0] == 0.5 * 48 + 1 * 8 + 1.5
    assert windows.centres()[0].tolist() == [0.5, 1.0, 1.5]
    assert windows.centres()[-1].tolist() == [2.5, 4.0, 5.5]


def test_windows_share_the_tokens_they_have_in_common():
    queries, keys = runs((4, 6, 8), 24), runs((4, 6, 8), 16)
    expected = [
        [max(24 * i, 16 * j) < min(24 * i + 24, 16 * j + 16) for j in range(12)] for i in range(8)
    ]
    assert sharing(queries, keys).tolist() == expected
