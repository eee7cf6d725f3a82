"""Where the token grid lies in the packed tokens [B, S, C] of an LTX transformer.

A call gives the grid as numbers, as coordinates of the tokens, or as both. Pipelines that condition
on frames put tokens of their own before the grid (LTX-Video) or behind it (LTX-2); the number of
tokens then is not that of the grid, and only the coordinates say where it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rainfusion_trt.errors import NotSparseError

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class PackedTokens:
    """The tokens of a call.

    Attributes
    ----------
    grid : tuple of int
        T, H and W.
    before, after : int
        Tokens before and behind the grid. One of them is 0.
    """

    grid: Grid
    before: int = 0
    after: int = 0


def packed_tokens(call: Mapping[str, Any]) -> PackedTokens:
    """Find the token grid of a call of an LTX transformer.

    Numbers count only where they are all of the tokens. Else the coordinates are read, for which
    the host waits for the device, and a graph of torch.compile breaks.

    Parameters
    ----------
    call : mapping
        Keyword arguments: `hidden_states` [B, S, C], `num_frames`, `height` and `width` in tokens,
        and `video_coords` [B, 3, S] or [B, 3, S, 2].

    Raises
    ------
    NotSparseError
        The tokens are no grid with others on one side of it.
    """
    tokens = call["hidden_states"].shape[1]
    numbers: Any = tuple(call.get(name) for name in ("num_frames", "height", "width"))
    if None in numbers:
        numbers = None
    elif numbers[0] * numbers[1] * numbers[2] == tokens:
        return PackedTokens(numbers)
    elif tuple(numbers) == (1, 1, 1):  # which LTXI2VLongMultiPromptPipeline gives for any size
        numbers = None
    coordinates = call.get("video_coords")
    if coordinates is None:
        given = "not given" if numbers is None else " x ".join(map(str, numbers))
        raise NotSparseError(
            f"hidden_states has {tokens} tokens, and num_frames x height x width is {given}: give "
            "the size in tokens, or video_coords"
        )
    return _found(_starts(coordinates, tokens), numbers)


def _starts(coordinates: Tensor, tokens: int) -> Tensor:
    """[3, S] on the host: where each token begins in time, rows and columns."""
    if coordinates.dim() not in (3, 4) or tuple(coordinates.shape[1:3]) != (3, tokens):
        raise NotSparseError(
            f"video_coords has shape {tuple(coordinates.shape)}; {tokens} tokens have [B, 3, "
            f"{tokens}], or [B, 3, {tokens}, 2] with their ends"
        )
    first = coordinates[0] if coordinates.dim() == 3 else coordinates[0, ..., 0]
    return first.detach().cpu()


class _Run(NamedTuple):
    """A grid at one end of the tokens."""

    grid: Grid
    first: bool  # whether at their beginning
    at_start: bool  # whether it begins at time 0, as clips do, and conditions beside them seldom

    @classmethod
    def at(cls, starts: Tensor, *, first: bool) -> _Run:
        grid = _leading(starts if first else starts.flip(1))
        begins = starts[0, 0 if first else -math.prod(grid)]
        return cls(grid, first, bool(begins == 0))

    def fits(self, numbers: Grid) -> bool:
        """Tokens of a later frame beside the grid may look like one frame more of it."""
        return self.grid[1:] == numbers[1:] and self.grid[0] >= numbers[0]

    def beside(self, grid: Grid, tokens: int) -> PackedTokens:
        rest = tokens - math.prod(grid)
        return PackedTokens(grid, *((0, rest) if self.first else (rest, 0)))


@torch.compiler.disable  # values of a tensor are no part of a graph
def _found(starts: Tensor, numbers: Grid | None) -> PackedTokens:
    """The grid of those numbers at either end, else the one that begins at time 0, else the larger.

    Pictures one after the other look like a clip too, and may be more than its frames.
    """
    tokens = starts.shape[1]
    runs = [_Run.at(starts, first=True), _Run.at(starts, first=False)]
    runs.sort(key=lambda run: run.at_start, reverse=True)
    for run in runs:
        if numbers is not None and run.fits(numbers):
            return run.beside(numbers, tokens)
    best, other = sorted(runs, key=lambda run: (run.at_start, math.prod(run.grid)), reverse=True)
    is_clip = best.at_start and not other.at_start and _whole_frames(starts, best.grid)
    if 2 * math.prod(best.grid) <= tokens and not is_clip:
        raise NotSparseError(
            f"video_coords place {tokens} tokens in no grid of frames, rows and columns in order, "
            f"with conditioning tokens on one side of it; the largest found is "
            f"{' x '.join(map(str, max((run.grid for run in runs), key=math.prod)))}"
        )
    return best.beside(best.grid, tokens)


def _whole_frames(starts: Tensor, grid: Grid) -> bool:
    """Whether all tokens are frames of the rows and columns of a grid, as its conditions are."""
    area = grid[1] * grid[2]
    if starts.shape[1] % area:
        return False
    places = starts[1:].unflatten(1, (-1, area))
    return bool((places == places[:, :1]).all())


def _leading(starts: Tensor) -> Grid:
    """The grid that the tokens begin with, in their order or all in the reverse one.

    Frames of the same rows and columns, one time each, and times that go one way.
    """
    area = _equal(starts[0])
    width = _equal(starts[1, :area])
    height, rest = divmod(area, width)
    if rest:
        return 1, 1, 1
    count = starts.shape[1] // area
    time, rows, columns = starts[:, : count * area].reshape(3, count, height, width)
    first_rows, first_columns = rows[0, :, 0], columns[0, 0]
    if not (_one_way(first_rows) and _one_way(first_columns)):
        return 1, 1, 1
    times = time[:, 0, 0]
    whole = (
        (time == times[:, None, None])
        & (rows == first_rows[None, :, None])
        & (columns == first_columns[None, None])
    ).all((1, 2))
    steps = times.diff()
    follows = torch.cat([whole[:1], whole[1:] & (steps * steps[:1].sum() > 0)])
    return int(follows.to(torch.int64).cumprod(0).sum()), height, width


def _equal(values: Tensor) -> int:
    """How many of the first values are equal."""
    others = (values != values[0]).nonzero()
    return int(others[0]) if len(others) else len(values)


def _one_way(values: Tensor) -> bool:
    """Whether values all rise or all fall."""
    steps = values.diff()
    return bool((steps > 0).all() or (steps < 0).all())
