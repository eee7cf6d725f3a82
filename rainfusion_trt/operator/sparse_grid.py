"""Whether a token grid leaves anything to be sparse in: the one place that decides it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rainfusion_trt.operator.exact_frames import check_within
from rainfusion_trt.operator.geometry import block_shape
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.operator.windows import (
    all_exact,
    most_frames,
    single_window,
    windows_cross,
)

Obstacle = Literal["frames", "exact", "window", "windows"]
# Of grids of more tokens, query and key windows are cut along one axis, and some do not meet.
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
    "frames", "exact", "window", "windows" or None
        Fewer than two frames beside the sinks; exact frames in every window, or all others of a
        method without windows; one window of piecewise that holds all of them; or windows of which
        each query's meets each key's, and what meets is always kept.

    Raises
    ------
    InvalidInputError
        An exact frame that the clip does not have.
    """
    frames, height, width = grid
    check_within(settings.exact_frames, frames)
    free_frames = frames - settings.sink_frames - settings.last_sink_frames
    if free_frames < 2:
        return "frames"
    if settings.exact_frames and _all_exact(free_frames, height, width, settings, head_size):
        return "exact"
    if settings.method != "piecewise" or head_size is None:
        return None
    shape = block_shape(head_size, settings.precision)
    longest = most_frames(settings.exact_frames)
    if single_window(free_frames, height * width, shape.k, longest):
        return "window"
    if free_frames * height * width > _SMALL:
        return None
    free = _NUMBERS[free_frames], _NUMBERS[height], _NUMBERS[width]
    return "windows" if windows_cross(*free, shape.q, shape.k, longest) else None


def _all_exact(
    free_frames: int, height: int, width: int, settings: AttentionSettings, head_size: int | None
) -> bool:
    if max(free_frames, height, width) > _SMALL:  # of some million tokens; nobody looks them up
        return False
    free = _NUMBERS[free_frames], _NUMBERS[height], _NUMBERS[width]
    first = settings.sink_frames
    exact = tuple((begin - first, end - first) for begin, end in settings.exact_frames)
    budgets: tuple[int, ...] = ()
    if settings.method == "piecewise" and head_size is not None:
        budgets = tuple(block_shape(head_size, settings.precision))
    return all_exact(*free, exact, budgets)


def explain_obstacle(
    obstacle: Obstacle, grid: Sequence[int], settings: AttentionSettings, sparsity: float
) -> str:
    """The obstacle to a sparsity and its remedies in one line."""
    return f"sparsity={sparsity:g} has no effect: {describe_obstacle(obstacle, grid, settings)}"


def describe_obstacle(obstacle: Obstacle, grid: Sequence[int], settings: AttentionSettings) -> str:
    """The obstacle to any sparsity and its remedies, as the end of a line."""
    if obstacle == "frames":
        names = ["sink_frames"]
        if settings.last_sink_frames > 0:
            names.append("last_sink_frames")
        sinks = " and ".join(f"{name}={getattr(settings, name)}" for name in names)
        return (
            f"the clip has {grid[0]} latent frames, {sinks} of them are always attended to, and "
            f"at least two others are needed; use a longer clip, fewer {' and '.join(names)} or "
            "sparsity=0"
        )
    if obstacle == "exact":
        return (
            f"exact_frames={settings.exact_frames} of {grid[0]} latent frames leave method "
            f"{settings.method!r} no queries or no keys that are not exact; name fewer frames, or "
            "use sparsity=0"
        )
    if obstacle == "windows":
        return (
            f"of {' x '.join(map(str, grid))} tokens every query window of method 'piecewise' "
            "shares some with every key window, which it always attends to; use a larger clip, "
            "another method or sparsity=0"
        )
    return (
        "one window of method 'piecewise' holds all tokens of this clip beside its sinks; use a "
        "larger clip, another method or sparsity=0"
    )
