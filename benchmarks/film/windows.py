"""Cuts of the non-sink tokens into windows: aligned boxes or runs of the raster order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.film.scene import Shape

PARTS = 4


@dataclass(frozen=True)
class Windows:
    """Windows of equal size that cover all non-sink tokens.

    Attributes
    ----------
    tokens
        int64 [windows, size]: raster indices. Quarters of a row are the sub-windows.
    grid
        The non-sink grid.
    """

    tokens: Tensor
    grid: Shape

    @property
    def count(self) -> int:
        return self.tokens.shape[0]

    @property
    def size(self) -> int:
        return self.tokens.shape[1]

    def gather(self, x: Tensor) -> Tensor:
        """[N, n, D] in raster order to [N, windows, size, D]."""
        return x[:, self.tokens]

    def means(self, x: Tensor, parts: int = 1) -> Tensor:
        """Float32 means [N, windows * parts, D] of windows, or of equal parts of them."""
        gathered = self.gather(x.float())
        return gathered.unflatten(2, (parts, self.size // parts)).mean(3).flatten(1, 2)

    def scatter(self, windows: Tensor) -> Tensor:
        """[N, windows, size, D] back to raster order."""
        out = torch.empty_like(windows.flatten(1, 2))
        out[:, self.tokens.flatten()] = windows.flatten(1, 2)
        return out

    def window_of(self) -> Tensor:
        """int64 [n]: the window that holds each token."""
        found = torch.empty(self.tokens.numel(), dtype=torch.long, device=self.tokens.device)
        numbers = torch.arange(self.count, device=self.tokens.device)
        found[self.tokens.flatten()] = numbers.repeat_interleave(self.size)
        return found

    def centres(self) -> Tensor:
        """Float32 [windows, 3]: mean frame, row and column."""
        _, height, width = self.grid
        t, rest = self.tokens // (height * width), self.tokens % (height * width)
        return torch.stack([t, rest // width, rest % width], -1).float().mean(1)


def sub_shape(shape: Shape) -> Shape:
    """A quarter of a box: halves of rows and columns, of frames where one of these is odd."""
    parts = list(shape)
    left = 2
    for axis in (1, 2, 0, 2, 1, 0):
        if left and parts[axis] % 2 == 0:
            parts[axis] //= 2
            left -= 1
    if left:
        raise ValueError(f"a window {shape} has no {PARTS} equal sub-windows")
    return parts[0], parts[1], parts[2]


def boxes(grid: Shape, shape: Shape, device: torch.device | str = "cpu") -> Windows:
    """Aligned boxes of (frames, rows, columns), in raster order of the boxes."""
    if any(n % m for n, m in zip(grid, shape, strict=True)):
        raise ValueError(f"windows {shape} do not divide the grid {grid}")
    small = sub_shape(shape)
    sizes = [
        part for n, m, s in zip(grid, shape, small, strict=True) for part in (n // m, m // s, s)
    ]  # per axis: box, sub-window, token
    index = torch.arange(math.prod(grid), device=device).view(sizes)
    order = index.permute(0, 3, 6, 1, 4, 7, 2, 5, 8)
    return Windows(order.reshape(-1, math.prod(shape)), grid)


def runs(grid: Shape, size: int, device: torch.device | str = "cpu") -> Windows:
    """Runs of ``size`` tokens of the raster order."""
    tokens = math.prod(grid)
    if tokens % size or size % PARTS:
        raise ValueError(f"runs of {size} do not divide {tokens} tokens evenly")
    return Windows(torch.arange(tokens, device=device).view(-1, size), grid)


def sharing(queries: Windows, keys: Windows) -> Tensor:
    """bool [query windows, key windows]: which have a token in common."""
    shared = torch.zeros(queries.count, keys.count, dtype=torch.bool, device=keys.tokens.device)
    rows = torch.arange(queries.count, device=keys.tokens.device)[:, None]
    shared[rows, keys.window_of()[queries.tokens]] = True
    return shared
