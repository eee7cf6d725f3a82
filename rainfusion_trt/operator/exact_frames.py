"""Exact frames of a clip: the one form in which everything else has them, and the ways to it.

Nothing here imports torch. ``docs/rainfusion.md`` says what they mean.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence, Set
from numbers import Integral
from typing import Any

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import InvalidInputError

__all__ = [
    "MOST_RANGES",
    "TEXT_FORM",
    "ExactFrames",
    "FrameRanges",
    "beside_sinks",
    "check_within",
    "flat_of",
    "frames_of_flat",
    "frames_of_text",
    "ranges_of",
]

ExactFrames = Sequence[int | Sequence[int]]
"""As a caller gives them: latent frames, and ranges (begin, end) of them, in any order."""

FrameRanges = tuple[tuple[int, int], ...]
"""As they are kept: ranges [begin, end) in their order, which neither overlap nor touch."""

MOST_RANGES = 4  # of a problem of the C interface
_END = (1 << 31) - 1
TEXT_FORM = "FRAME or BEGIN:END"
"""What :func:`frames_of_text` reads, as a command's help has it."""

_DIGITS = "[0-9]{1,20}"  # Python reads no number of thousands


def ranges_of(value: Any) -> FrameRanges:
    """Exact frames in the form in which they are kept.

    Parameters
    ----------
    value : sequence
        Such as ``(12, (24, 26))``: frame 12, and frames 24 and 25.

    Raises
    ------
    InvalidInputError
        No such sequence, a range without a frame, or more ranges than the kernels take.
    """
    if isinstance(value, range) and value.step == 1:
        value = (value,) if value else ()  # however long it is
    elements = _row_of(value)
    if elements is None:
        raise InvalidInputError(
            f"exact_frames={shown(value)} must be a sequence of latent frames and of ranges of "
            "them, such as (12, (24, 26))"
        )
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(map(_range_of, elements)):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    if len(joined) > MOST_RANGES:
        raise InvalidInputError(
            f"exact_frames={shown(value)} are {len(joined)} ranges of frames and the kernels take "
            f"{MOST_RANGES}: name fewer, or join some into one range"
        )
    return tuple(joined)


def _range_of(element: Any) -> tuple[int, int]:
    ends: tuple[Any, ...] | None = None
    if _is_whole(element):
        ends = element, int(element) + 1
    elif isinstance(element, range):  # whose two frames are no begin and end
        ends = (element.start, element.stop) if element.step == 1 else None
    elif not isinstance(element, Set):  # which has no order
        ends = _row_of(element)
    if ends is None or len(ends) != 2 or not all(_is_whole(end) for end in ends):
        raise InvalidInputError(
            f"exact_frames has {shown(element)}, which is neither a latent frame nor a range "
            "(begin, end)"
        )
    # By `index`, which makes a number of what torch.compile has as a symbol: frames have an order.
    begin, end = map(operator.index, ends)
    if not 0 <= begin < end <= _END:
        raise InvalidInputError(
            f"exact_frames has {shown(element)}: latent frames count from 0, and a range "
            "(begin, end) ends behind its last frame"
        )
    return begin, end


def _row_of(value: Any) -> tuple[Any, ...] | None:
    """The elements of a value; None of one that has none."""
    if isinstance(value, (str, bytes, Mapping)):
        return None
    try:
        return tuple(value)
    except TypeError:  # also of arrays and tensors without a dimension, which are iterable by type
        return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def flat_of(ranges: FrameRanges) -> list[int]:
    """Begin and end of every range, one behind the other, as nodes and operators have them."""
    return [number for each in ranges for number in each]


def frames_of_flat(numbers: Sequence[int]) -> ExactFrames:
    """The reverse of :func:`flat_of`, not checked but for the number of numbers."""
    if len(numbers) % 2:
        raise InvalidInputError(
            f"exact_frames={list(numbers)} has {len(numbers)} numbers; it takes the begin and the "
            "end of every range"
        )
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def frames_of_text(texts: Sequence[str]) -> ExactFrames:
    """What a command line or a text field says, each "12" for a frame or "24:26" for a range."""
    frames: list[int | tuple[int, ...]] = []
    for text in texts:
        if not re.fullmatch(rf"\s*{_DIGITS}(:{_DIGITS})?\s*", text):
            raise InvalidInputError(
                f"exact_frames {shown(text)} is neither a latent frame such as 12 nor a range such "
                "as 24:26, which ends behind its last frame"
            )
        numbers = tuple(int(part) for part in text.split(":"))
        frames.append(numbers if len(numbers) == 2 else numbers[0])
    return tuple(frames)


def beside_sinks(ranges: FrameRanges, first: int, last: int) -> FrameRanges:
    """Ranges with a frame in [first, last), which are no sinks, counted from `first`.

    They may begin and end outside. `first` and `last` may be symbolic.
    """
    return tuple((b - first, e - first) for b, e in ranges if b < last and first < e)


def check_within(ranges: FrameRanges, frames: int) -> None:
    """Raise InvalidInputError for exact frames that a clip of so many latent frames lacks."""
    if ranges and ranges[-1][1] > frames:
        raise InvalidInputError(
            f"exact_frames={ranges} names latent frame {ranges[-1][1] - 1}, and the clip has "
            f"{frames}, from 0 on; name frames of the clip"
        )
