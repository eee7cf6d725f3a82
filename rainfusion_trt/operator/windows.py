"""Windows of method ``piecewise``: boxes of tokens that are near in time and space.

The kernels' definition is ``plugins/kernels/common/windows.h``; this module states the same rules
from the tokens' side (every token has a window), and a test holds the two against each other.
``docs/rainfusion.md`` gives the rules in prose.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rainfusion_trt.operator.exact_frames import FrameRanges
from rainfusion_trt.operator.geometry import TokenLayout

MOST_FRAMES = 16  # longer windows were not measured
MOST_FRAMES_BESIDE_EXACT = 2  # so that what holds an exact frame is a small part of the clip
MOST_STRETCH = 8  # of rows and columns before a window costs half as much again
_UNIT = 720_720  # which every number of frames up to MOST_FRAMES divides

Extents = tuple[int, int, int]  # frames, rows, columns


def most_frames(free_exact_frames: FrameRanges) -> int:
    """Frames of a window at most, where these frames beside the sinks are exact."""
    return MOST_FRAMES_BESIDE_EXACT if free_exact_frames else MOST_FRAMES


@functools.lru_cache(maxsize=256)
def window_shape(grid: Extents, most: int, frames: int = MOST_FRAMES) -> Extents:
    """The box (t, h, w) of windows of at most `most` tokens in a grid of non-sink tokens.

    At most `frames` of them long, which is :func:`most_frames`.
    """
    counts = _counts(grid, min(_boxes(most, frames), key=lambda box: _rank(grid, box)))
    t, h, w = (-(-extent // count) for extent, count in zip(grid, counts, strict=True))
    return t, h, w


@functools.cache
def _boxes(most: int, frames: int) -> tuple[Extents, ...]:
    return tuple(
        (t, h, w)
        for t in range(1, min(frames, most) + 1)
        for h in range(1, most // t + 1)
        for w in range(1, most // (t * h) + 1)
    )


def _counts(grid: Extents, box: Extents) -> Extents:
    t, h, w = (-(-extent // size) for extent, size in zip(grid, box, strict=True))
    return t, h, w


def _rank(grid: Extents, box: Extents) -> tuple[int, int, int, int]:
    """Cost of a box in whole numbers, then what decides between boxes of one cost."""
    t, h, w = box
    stretched = max(h, w) > MOST_STRETCH * min(h, w)
    cost = math.prod(_counts(grid, box)) * (20 * t + 9) * (_UNIT // t) * (3 if stretched else 2)
    return cost, h + w, -t, -w


def single_window(free_frames: int, frame: int, most: int, frames: int = MOST_FRAMES) -> bool:
    """Whether one window of at most `most` tokens holds all non-sink tokens.

    Says without a search, of two frames and more, what :func:`window_shape` comes to for windows of
    at most `frames` of them: the box that holds all costs at most 1.225 * 1.5, two windows at least
    2. The numbers may be symbolic.
    """
    return free_frames <= frames and free_frames * frame <= most


@torch.compiler.assume_constant_result
def windows_cross(
    free_frames: int,
    height: int,
    width: int,
    q_most: int,
    k_most: int,
    exact: FrameRanges = (),
) -> bool:
    """Whether every query window keeps every key window, whatever the sparsity.

    It keeps those with which it shares a token, and all where one of the two holds a frame of
    `exact`. These count from the first non-sink frame; some may lie beside the others.
    """
    grid = (free_frames, height, width)
    q_box, k_box = (window_shape(grid, most, most_frames(exact)) for most in (q_most, k_most))
    q_frames, k_frames = (
        [
            (first, first + box[0])
            for first in range(0, free_frames, box[0])
            if not any(begin < first + box[0] and first < end for begin, end in exact)
        ]
        for box in (q_box, k_box)
    )
    # Two windows of each along one axis do not all meet.
    counts = zip(_counts(grid, q_box)[1:], _counts(grid, k_box)[1:], strict=True)
    if not all(q == 1 or k == 1 for q, k in counts):
        return not q_frames or not k_frames
    return all(q[0] < k[1] and k[0] < q[1] for q in q_frames for k in k_frames)


@dataclass(frozen=True)
class WindowCut:
    """The blocks of piecewise in memory order: runs of sinks, windows, runs of sinks.

    Attributes
    ----------
    layout : TokenLayout
        Places of the tokens.
    size : int
        Tokens of a run, and at most of a window.
    """

    layout: TokenLayout
    size: int

    @property
    def grid(self) -> Extents:
        """(T', H, W) of the non-sink tokens."""
        _, height, width = self.layout.grid
        return self.layout.free_frames, height, width

    @property
    def box(self) -> Extents:
        """Frames, rows and columns of a window that is not cut off."""
        if not self.grid[0]:
            return 1, 1, 1
        return window_shape(self.grid, self.size, most_frames(self.layout.free_exact_frames))

    @property
    def counts(self) -> Extents:
        """Windows along each axis."""
        return _counts(self.grid, self.box)

    @property
    def windows(self) -> int:
        return math.prod(self.counts)

    @property
    def leading_sinks(self) -> int:
        """Runs of sinks before the first window."""
        return -(-self.layout.free_begin // self.size)

    @property
    def trailing_sinks(self) -> int:
        """Runs of sinks behind the last window."""
        return -(-(self.layout.tokens - self.layout.free_end) // self.size)

    @property
    def blocks(self) -> int:
        return self.leading_sinks + self.windows + self.trailing_sinks

    def sink_runs(self) -> list[tuple[int, int]]:
        """Tokens [begin, end) of every run of sinks, in memory order."""
        spans = ((0, self.layout.free_begin), (self.layout.free_end, self.layout.tokens))
        return [
            (run, min(run + self.size, end))
            for begin, end in spans
            for run in range(begin, end, self.size)
        ]

    def window_of(self, device: str | torch.device = "cpu") -> Tensor:
        """int64 [S]: the window of every token, -1 for sinks."""
        index = torch.arange(self.layout.free_tokens, device=device)
        _, height, width = self.grid
        place = (index // (height * width), index // width % height, index % width)
        t, h, w = (at // size for at, size in zip(place, self.box, strict=True))
        result = torch.full((self.layout.tokens,), -1, device=device)
        begin, end = self.layout.free_begin, self.layout.free_end
        result[begin:end] = (t * self.counts[1] + h) * self.counts[2] + w
        return result

    def tokens_of(self, device: str | torch.device = "cpu") -> Tensor:
        """int64 [windows, n]: the tokens of every window in raster order, -1 behind the last."""
        window_of = self.window_of(device)
        sinks = self.layout.tokens - self.layout.free_tokens
        order = torch.sort(window_of, stable=True).indices[sinks:]
        window = window_of[order]
        sizes = torch.bincount(window, minlength=self.windows)
        place = torch.arange(len(order), device=device) - (sizes.cumsum(0) - sizes)[window]
        tokens = torch.full((self.windows, math.prod(self.box)), -1, device=device)
        tokens[window, place] = order
        return tokens

    def is_exact(self, device: str | torch.device = "cpu") -> Tensor:
        """bool [windows]: which have a token of an exact frame."""
        window_of = self.window_of(device)
        exact = self.layout.is_exact().to(device) & (window_of >= 0)
        result = torch.zeros(self.windows, dtype=torch.bool, device=device)
        result[window_of[exact]] = True
        return result

    def spans(self, device: str | torch.device = "cpu") -> Tensor:
        """int64 [2, windows, 3]: first and last frame, row and column of every window."""
        axes = (torch.arange(count, device=device) for count in self.counts)
        box, grid = (torch.tensor(extents, device=device) for extents in (self.box, self.grid))
        first = torch.cartesian_prod(*axes).view(-1, 3) * box
        return torch.stack([first, torch.minimum(first + box, grid) - 1])

    def middles(self, device: str | torch.device = "cpu") -> Tensor:
        """int64 [windows]: the token in the middle of what of every window is in the grid."""
        first, last = self.spans(device)
        t, h, w = (first + (last - first + 1) // 2).unbind(1)
        _, height, width = self.grid
        return self.layout.free_begin + (t * height + h) * width + w


def windows_meet(q_cut: WindowCut, k_cut: WindowCut, device: str | torch.device = "cpu") -> Tensor:
    """bool [query windows, key windows]: which share a token."""
    q_first, q_last = q_cut.spans(device)[:, :, None]
    k_first, k_last = k_cut.spans(device)
    return ((q_first <= k_last) & (k_first <= q_last)).all(-1)
