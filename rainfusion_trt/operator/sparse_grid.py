"""Whether a token grid leaves anything to be sparse in: the one place that decides it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal

from rainfusion_trt.operator.exact_frames import beside_sinks, check_within
from rainfusion_trt.operator.geometry import BlockShape, block_shape, blocks_cross
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.operator.windows import most_frames, single_window, windows_cross

Obstacle = Literal["frames", "exact", "window", "windows", "blocks"]
# Methods whose heads are all made of blocks in memory order; textural heads choose single tokens.
_OF_BLOCKS = ("rainfusion2", "rainfusion_two_way")
# Of grids of more tokens, query and key windows are cut along one axis, and some do not meet; which
# of them have exact frames is asked of all.
_SMALL = 4096
# A number of tokens looked up here is no symbol of torch.compile any more.
_NUMBERS = tuple(range(_SMALL + 1))


def obstacle_to_sparsity(
    grid: Sequence[int], settings: AttentionSettings, head_size: int | None
) -> Obstacle | None:
    """What makes attention over a grid dense whatever the sparsity; None for nothing.

    The numbers may be symbolic, as torch.compile has them.

    Parameters
    ----------
    grid : sequence of int
        T, H and W in tokens.
    settings : AttentionSettings
        Method, sink frames and exact frames.
    head_size : int or None
        D, which says how many tokens a window holds; None where nobody knows it.

    Returns
    -------
    "frames", "exact", "window", "windows", "blocks" or None
        Fewer than two frames beside the sinks; nothing else than exact frames beside them; one
        window of piecewise that holds all of them; or windows or blocks of which each query's meets
        each key's, and what meets is always kept, as is what holds a sink or an exact frame. Where
        it is the exact frames that leave nothing else, "exact".

    Raises
    ------
    InvalidInputError
        An exact frame that the clip does not have.
    """
    frames, height, width = grid
    check_within(settings.exact_frames, frames)
    first, last = settings.sink_frames, frames - settings.last_sink_frames
    free_frames = last - first
    if free_frames < 2:
        return "frames"
    exact = beside_sinks(settings.exact_frames, first, last)
    if any(begin <= 0 and free_frames <= end for begin, end in exact):
        return "exact"
    if head_size is None:
        return None
    shape = block_shape(head_size, settings.precision)
    if settings.method in _OF_BLOCKS:
        return _obstacle_of_blocks(grid, settings, shape)
    if settings.method != "piecewise":
        return None
    if single_window(free_frames, height * width, shape.k, most_frames(exact)):
        return "window"
    if exact:
        known = max(free_frames, height, width) <= _SMALL  # else of some million tokens
    else:
        known = free_frames * height * width <= _SMALL
    if not known:
        return None
    free = _NUMBERS[free_frames], _NUMBERS[height], _NUMBERS[width]
    exact = tuple((_NUMBERS[max(0, b)], _NUMBERS[min(e, free_frames)]) for b, e in exact)
    if not windows_cross(*free, *shape, exact):
        return None
    return "exact" if exact else "windows"


def _obstacle_of_blocks(
    grid: Sequence[int], settings: AttentionSettings, shape: BlockShape
) -> Literal["exact", "blocks"] | None:
    """What pairs all blocks of a grid with two frames and more that are no sinks, if anything."""
    frames, height, width = grid
    sinks = settings.sink_frames, settings.last_sink_frames
    together = 1 if settings.exact_frames else frames - sum(sinks)  # at least, if not all are exact
    if together * height * width >= 4 * max(shape):  # where a first key and a last query are apart
        return None
    if blocks_cross(grid, sinks, (), shape):
        return "blocks"
    exact = settings.exact_frames
    return "exact" if exact and blocks_cross(grid, sinks, exact, shape) else None


def explain_obstacle(
    obstacle: Obstacle, grid: Sequence[int], settings: AttentionSettings, sparsity: float
) -> str:
    """The obstacle to a sparsity and its remedies in one line."""
    return f"sparsity={sparsity:g} has no effect: {describe_obstacle(obstacle, grid, settings)}"


def describe_obstacle(obstacle: Obstacle, grid: Sequence[int], settings: AttentionSettings) -> str:
    """The obstacle to any sparsity and its remedies, as the end of a line."""
    grid = tuple(map(operator.index, grid))  # numbers, where torch.compile has symbols
    if obstacle == "frames":
        names, sinks = _sinks(settings)
        return (
            f"the clip has {grid[0]} latent frames, {sinks} of them are always attended to, and "
            f"at least two others are needed; use a longer clip, fewer {names} or sparsity=0"
        )
    if obstacle == "blocks":
        names, sinks = _sinks(settings)
        return (
            f"of {grid[0]} x {grid[1]} x {grid[2]} tokens with {sinks} every two blocks of method "
            f"{settings.method!r} share a token or one holds a sink, and are always attended to; "
            f"use a larger clip, fewer {names} or sparsity=0"
        )
    if obstacle == "exact":
        return (
            f"exact_frames={settings.exact_frames} of {grid[0]} latent frames leave method "
            f"{settings.method!r} nothing to leave out, as what holds a token of theirs is exact; "
            "name fewer frames, or use sparsity=0"
        )
    if obstacle == "windows":
        return (
            f"of {grid[0]} x {grid[1]} x {grid[2]} tokens every query window of method 'piecewise' "
            "shares some with every key window, which it always attends to; use a larger clip, "
            "another method or sparsity=0"
        )
    return (
        "one window of method 'piecewise' holds all tokens of this clip beside its sinks; use a "
        "larger clip, another method or sparsity=0"
    )


def _sinks(settings: AttentionSettings) -> tuple[str, str]:
    """The settings that make frames sinks, by name, and with their values."""
    names = ["sink_frames"]
    if settings.last_sink_frames > 0:
        names.append("last_sink_frames")
    values = [f"{name}={operator.index(getattr(settings, name))}" for name in names]
    return " and ".join(names), " and ".join(values)
