"""What is said to be dense at any sparsity is, and what is not said so is not."""

from __future__ import annotations

import math

import pytest
import torch

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.operator.sparse_grid import (
    describe_obstacle,
    explain_obstacle,
    obstacle_to_sparsity,
)

GRID = (9, 12, 16)  # without exact frames, and with some elsewhere, its windows do not all meet


@pytest.mark.parametrize(
    ("settings", "obstacle"),
    [
        ({}, None),
        ({"exact_frames": (4,)}, None),
        ({"exact_frames": (0, 8)}, None),  # of which the first is a sink
        ({"exact_frames": ((1, 9),)}, "exact"),
        ({"exact_frames": ((0, 8),), "last_sink_frames": 1}, "exact"),
        ({"exact_frames": (1, 3, 5, 7)}, "exact"),
        ({"exact_frames": (1, 3, 5)}, "exact"),  # what is left lies in two frames, and meets
        ({"exact_frames": (1, 3)}, None),
        ({"exact_frames": (1, 3, 5, 7), "method": "rainfusion2"}, None),
        ({"exact_frames": ((1, 9),), "method": "rainfusion2"}, "exact"),
        ({"exact_frames": ((0, 9),), "method": "rainfusion_two_way"}, "exact"),
    ],
    ids=str,
)
def test_exact_frames_that_leave_nothing(settings, obstacle):
    collected = AttentionSettings(**settings)
    assert obstacle_to_sparsity(GRID, collected, 64) == obstacle
    q, k = torch.randn(2, 1, 1, math.prod(GRID), 64, generator=torch.manual_seed(1)).unbind(0)
    plan = reference.classify_heads(q, k, GRID, sparsity=0.9, **settings)
    assert (plan.density.item() == 1) == (obstacle is not None)
    if obstacle is not None:
        words = describe_obstacle(obstacle, GRID, collected)
        assert f"exact_frames={collected.exact_frames} of 9 latent frames" in words


def test_frames_that_the_clip_does_not_have():
    with pytest.raises(InvalidInputError, match="names latent frame 9, and the clip has 9"):
        obstacle_to_sparsity(GRID, AttentionSettings(exact_frames=(9,)), 64)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {"window", "windows", None}),
        ({"exact_frames": (2, 4)}, {"exact", None}),
        ({"exact_frames": (4,), "method": "rainfusion2"}, {None}),
    ],
    ids=["none", "exact frames", "rainfusion2"],
)
def test_sizes_may_be_symbols(settings, wanted):
    """As of clips of several sizes under torch.compile, those without a choice among them."""
    collected = AttentionSettings(**settings)
    said = []

    def look_at(x: torch.Tensor) -> torch.Tensor:
        obstacle = obstacle_to_sparsity(x.shape, collected, 64)
        if obstacle is not None:
            explain_obstacle(obstacle, x.shape, collected, 0.5)
            return x + 1
        return x

    torch._dynamo.reset()
    compiled = torch.compile(look_at, backend="eager", fullgraph=True, dynamic=True)
    for grid in ((6, 4, 4), (6, 4, 6), (7, 6, 4), GRID, (21, 30, 52)):
        x = torch.zeros(grid)
        assert torch.equal(compiled(x), look_at(x))
        said.append(obstacle_to_sparsity(grid, collected, 64))
    assert set(said) == wanted
