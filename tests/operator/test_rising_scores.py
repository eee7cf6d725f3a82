"""The scores that the GPU tests take reach every path of the Hopper kernel's softmax."""

from __future__ import annotations

import math
import re

import pytest
import torch

from helpers.rising_scores import (
    RISES,
    SHORT,
    SPIKES,
    TOKENS,
    leveled_heads,
    levels_of_rise,
    levels_of_spike,
)
from rainfusion_trt.operator.geometry import block_shape
from rainfusion_trt.plugin.build import source_directory

KERNELS = source_directory() / "plugins" / "kernels"
SOFTMAX = (KERNELS / "sm90" / "softmax.cuh", KERNELS / "common" / "row_softmax.cuh")


def limit(name: str) -> float:
    text = "".join(file.read_text() for file in SOFTMAX)
    return float(re.search(rf"{name} = ([0-9.e]+)f;", text)[1])


def paths(levels, head_size: int, kv_len: int) -> set[tuple[str, bool]]:
    """The path of a row's tile, as softmax_tile decides it, and whether the tile is the last."""
    q, k, _ = leveled_heads(levels, 1, 1, head_size, torch.bfloat16, "cpu")
    keys = block_shape(head_size).k
    scores = (q.float() @ k.float().transpose(-1, -2))[0, 0, :, :kv_len]
    tiles = (scores * (math.log2(math.e) / math.sqrt(head_size))).split(keys, dim=1)
    reference = tiles[0].amax(1)
    found = set()
    for tile in tiles[1:]:
        exponentials = torch.exp2(tile - reference[:, None])
        padded = torch.nn.functional.pad(exponentials, (0, -tile.shape[1] % 8))
        sums = padded.unflatten(1, (-1, 4, 2)).sum((1, 3))  # a thread has two of eight columns
        lowered = (sums > limit("kLargestHalfSum")).any(1)
        computed = ~(sums <= limit("kLargestFloatSum")).all(1)
        last = tile is tiles[-1]
        found |= {("kept", last)} if (~lowered).any() else set()
        found |= {("lowered", last)} if (lowered & ~computed).any() else set()
        found |= {("computed anew", last)} if computed.any() else set()
        reference = torch.where(lowered, torch.maximum(reference, tile.amax(1)), reference)
    return found


@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_rises_and_spikes_reach_every_path(head_size):
    rises = [paths(levels_of_rise(*rise), head_size, TOKENS) for rise in RISES]
    assert set.union(*rises) >= {
        (path, last) for path in ("kept", "lowered", "computed anew") for last in (False, True)
    }
    low, high = (paths(levels_of_spike(height), head_size, SHORT) for height in SPIKES)
    assert ("lowered", True) in low and "computed anew" not in {path for path, _ in low}
    assert ("computed anew", True) in high
