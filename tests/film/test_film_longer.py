"""Scenes fit together: weights, splits and windows of longer clips."""

import itertools
import math

import pytest
import torch

from benchmarks.film.catalogue import Catalogue
from benchmarks.film.predicted import PREDICTED, PREDICTED_LATER, PREDICTED_LONGER
from benchmarks.film.scene import FULL, LONGER, SCENES

CPU = torch.device("cpu")


def chosen_shape(grid, most):
    """The rule of docs/rainfusion.md, tried out on every box."""
    best = None
    for t, h, w in itertools.product(range(1, 17), *(range(1, n + 1) for n in grid[1:])):
        if t > grid[0] or t * h * w > most:
            continue
        windows = math.prod(math.ceil(n / m) for n, m in zip(grid, (t, h, w), strict=True))
        stretched = 3 if max(h, w) > 6 * min(h, w) else 2
        cost = (windows * stretched * (20 * t + 9) / t, h + w, -t, -w)
        if best is None or cost < best[0]:
            best = cost, (t, h, w)
    return tuple(math.ceil(n / math.ceil(n / m)) for n, m in zip(grid, best[1], strict=True))


@pytest.mark.parametrize("scene", [FULL, LONGER])
def test_long_windows_are_those_of_the_rule(scene):
    shapes = tuple(chosen_shape(scene.free_grid, most) for most in scene.tile)
    assert shapes == scene.shapes["long"]


@pytest.mark.parametrize("scene", [scene for pair in SCENES.values() for scene in pair])
def test_windows_fill_no_more_than_a_tile_and_divide_the_grid(scene):
    for name, pair in scene.shapes.items():
        assert all(math.prod(shape) <= most for shape, most in zip(pair, scene.tile, strict=True))
        queries, keys = Catalogue(scene, CPU).cut(name)
        assert queries.count * queries.size == keys.count * keys.size == scene.free


def test_weights_fit_both_scenes():
    for full, longer in zip(*SCENES.values(), strict=True):
        same = ("text", "heads", "layers", "head_size", "usable", "spread", "tile")
        assert [getattr(full, n) for n in same] == [getattr(longer, n) for n in same]
        assert longer.grid[0] > full.grid[0]


def test_every_prediction_is_of_a_rule():
    full, longer = (
        {entry.name for entry in Catalogue(scene, CPU).entries()} for scene in (FULL, LONGER)
    )
    assert {*PREDICTED, *PREDICTED_LATER} <= full
    assert set(PREDICTED_LONGER) == longer - {"everything kept"}
