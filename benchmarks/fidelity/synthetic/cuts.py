"""Cuts of a clip's tokens into windows, ragged or not, and what windows know of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.fidelity.synthetic.heads import Layout
from benchmarks.film.scene import Shape


@dataclass(frozen=True)
class Windows:
    """The window of every non-sink token, int64 [n], and the tokens of every window."""

    window_of: Tensor
    sizes: Tensor

    @property
    def count(self) -> int:
        return len(self.sizes)

    def sums(self, x: Tensor) -> Tensor:
        """Float32 sums [windows, D] of [n, D]."""
        out = x.new_zeros(self.count, x.shape[-1], dtype=torch.float32)
        return out.index_add_(0, self.window_of, x.float())

    def means(self, x: Tensor) -> Tensor:
        """Float32 means [windows, D]."""
        return self.sums(x) / self.sizes[:, None]


@dataclass(frozen=True)
class Cut:
    """Query windows and key windows, and the tiles that they are computed in."""

    queries: Windows
    keys: Windows
    tile: tuple[int, int]

    def sharing(self) -> Tensor:
        """bool [query windows, key windows]: which have a token in common."""
        shape = self.queries.count, self.keys.count
        shared = torch.zeros(shape, dtype=torch.bool, device=self.keys.sizes.device)
        shared[self.queries.window_of, self.keys.window_of] = True
        return shared

    def tiles(self, layout: Layout, kept: float, means: bool) -> float:
        """Share of dense tiles that free rows take, if they keep so many key windows."""
        columns = self.tile[1]
        row = kept + -(-layout.sinks // columns)
        row += -(-self.keys.count // columns) if means else 0
        dense = -(-layout.free // self.tile[0]) * -(-layout.tokens // columns)
        return self.queries.count * row / dense


def boxes(layout: Layout, shape: Shape, device: torch.device) -> Windows:
    """Aligned boxes of (frames, rows, columns); the last along an axis may be cut off."""
    grid = layout.free_grid
    counts = [-(-n // m) for n, m in zip(grid, shape, strict=True)]
    axes = [torch.arange(n, device=device) // m for n, m in zip(grid, shape, strict=True)]
    t, h, w = torch.meshgrid(*axes, indexing="ij")
    window_of = ((t * counts[1] + h) * counts[2] + w).flatten()
    return Windows(window_of, torch.bincount(window_of, minlength=math.prod(counts)).float())


def runs(layout: Layout, size: int, device: torch.device) -> Windows:
    """Runs of the raster order; the last may be cut off."""
    window_of = torch.arange(layout.free, device=device) // size
    return Windows(window_of, torch.bincount(window_of).float())
