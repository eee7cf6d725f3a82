"""What is said to be dense at any sparsity is, and what is not said so is not."""

from __future__ import annotations

import math

import pytest
import torch

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.geometry import TokenLayout, always_kept, block_shape
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
        ({"exact_frames": ((0, 8),), "method": "rainfusion_two_way"}, "exact"),
        # What is left has a block of queries, which all its blocks of keys meet.
        ({"exact_frames": (1, (3, 9)), "method": "rainfusion2"}, "exact"),
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


@pytest.mark.parametrize("precision", ["16bit", "8bit"])
@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize("method", ["rainfusion2", "rainfusion_two_way"])
def test_blocks_of_small_clips(method, head_size, precision):
    """Against the pairs that are always kept, counted from tokens."""
    random = torch.Generator().manual_seed(head_size)

    def number(most: int) -> int:
        return int(torch.randint(most, (), generator=random))

    said = []
    for _ in range(150):
        grid = 2 + number(8), 1 + number(13), 1 + number(13)
        frames = torch.randperm(grid[0], generator=random)[: number(5)].tolist()
        settings = AttentionSettings(
            method=method,
            precision=precision,
            sink_frames=number(4),
            last_sink_frames=number(3),
            exact_frames=frames,
            text="first" if number(2) else "last",
        )
        layout = TokenLayout.of(grid, math.prod(grid) + number(300), settings)
        if layout.always_dense:
            continue
        obstacle = obstacle_to_sparsity(grid, settings, head_size)
        kept = always_kept(layout, block_shape(head_size, precision))
        assert bool(kept.all()) == (obstacle is not None), (grid, settings)
        said.append(obstacle)
        if obstacle is not None:
            assert "; " in describe_obstacle(obstacle, grid, settings)
    assert set(said) == {None, "exact", "blocks"}


def test_a_clip_whose_blocks_all_hold_sinks_or_meet():
    settings = AttentionSettings(method="rainfusion2", sink_frames=2, last_sink_frames=1)
    words = explain_obstacle("blocks", (9, 4, 4), settings, 0.5)
    assert words.startswith("sparsity=0.5 has no effect: of 9 x 4 x 4 tokens with sink_frames=2 ")
    assert "and last_sink_frames=1 every two blocks of method 'rainfusion2'" in words
    assert obstacle_to_sparsity((9, 4, 4), settings, 64) == "blocks"
    assert obstacle_to_sparsity((9, 4, 4), settings, None) is None  # nobody knows its blocks
    # Textural heads choose single tokens.
    assert obstacle_to_sparsity((9, 4, 4), AttentionSettings(method="rainfusion"), 64) is None


def test_frames_that_the_clip_does_not_have():
    with pytest.raises(InvalidInputError, match="names latent frame 9, and the clip has 9"):
        obstacle_to_sparsity(GRID, AttentionSettings(exact_frames=(9,)), 64)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {"window", "windows", None}),
        ({"exact_frames": (2, 4)}, {"exact", None}),
        ({"exact_frames": (4,), "method": "rainfusion2"}, {"blocks", None}),
        ({"exact_frames": (2, 4), "method": "rainfusion_two_way"}, {"blocks", "exact", None}),
        ({"method": "rainfusion2", "last_sink_frames": 1}, {"blocks", None}),
    ],
    ids=["none", "exact frames", "rainfusion2", "exact frames, two way", "last sinks"],
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
    for grid in ((6, 4, 4), (6, 4, 6), (7, 6, 4), (6, 10, 12), GRID, (21, 30, 52)):
        x = torch.zeros(grid)
        assert torch.equal(compiled(x), look_at(x))
        said.append(obstacle_to_sparsity(grid, collected, 64))
    assert set(said) == wanted
