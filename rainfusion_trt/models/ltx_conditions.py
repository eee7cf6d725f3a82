"""Conditions of LTX beside the token grid: how many a call has, and whether a graph has room.

They are counted by the arguments of a pipeline, so that it is known before any work. What cannot be
read there counts as none: the first forward, whose tokens are there to be counted, says it then.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.models.inputs import Profiles
from rainfusion_trt.models.ltx_tokens import Grid

_FRAMES = 8  # pixel frames a latent frame, after the first
_PREFIX = 2  # latent frames of a later clip that LTXConditionPipeline has beside the grid


def check_beside(name: str, grid: Grid, beside: int, profiles: Profiles) -> None:
    """Refuse more tokens beside the grid of a clip than a graph takes.

    Parameters
    ----------
    name : str
        Of the model.
    grid : tuple of int
        T, H and W.
    beside : int
        Tokens.
    profiles
        What the graph takes. Where none is of the clip, that is said elsewhere.

    Raises
    ------
    UnsupportedError
        They are more.
    """
    count = math.prod(grid) + beside
    rooms = [p["hidden_states"].max_shape[1] for p in profiles if p["grid"].accepts(grid)]
    most = max((count if room is None else room for room in rooms), default=count)
    if beside and count > most:
        raise UnsupportedError(
            f"{name}: the call has {beside} conditioning tokens beside the "
            f"{' x '.join(map(str, grid))} of the video, {count} in all, and the exported graph "
            f"takes up to {most} of such a clip: export with --dynamic, and for an engine give its "
            "recipe condition_frames; or condition on the first frames alone, or use "
            "backend='torch'"
        )


def frames_before(arguments: Mapping[str, Any]) -> int:
    """Of LTXConditionPipeline: one of a later picture, up to two of a later clip.

    Parameters
    ----------
    arguments : mapping
        Of the call: `num_frames`, and `conditions` or `image`, `video` and `frame_index`.
    """
    total = 0
    for index, image, video in _conditions_before(arguments):
        if index and (image is not None or video is not None):
            given = 1 if image is not None else _pixel_frames(video)
            total += min(_PREFIX, _latent_frames(given, arguments, index))
    return total


def frames_behind(arguments: Mapping[str, Any]) -> int:
    """Of LTX2ConditionPipeline and LTX2InContextPipeline: all of a later picture or clip.

    Those of references are not counted, which have a size of their own.

    Parameters
    ----------
    arguments : mapping
        Of the call: `num_frames` and `conditions`.
    """
    count, total = arguments.get("num_frames"), 0
    if not isinstance(count, int):
        return total
    latent = (count - 1) // _FRAMES + 1
    for one in _listed(arguments.get("conditions")):
        index = getattr(one, "index", 0)
        index = index % latent if index < 0 else index
        if 0 < index < latent:  # those behind the clip are left out
            given, start = _pixel_frames(getattr(one, "frames", None)), (index - 1) * _FRAMES + 1
            total += _latent_frames(given, arguments, start)
    return total


def _conditions_before(arguments: Mapping[str, Any]) -> Iterable[tuple[Any, Any, Any]]:
    """Index, picture and clip of each, paired as the pipeline does it."""
    conditions = arguments.get("conditions")
    if conditions is not None:
        given = _listed(conditions)
        names = ("frame_index", "image", "video")
        indices, images, videos = ([getattr(one, name, None) for one in given] for name in names)
        return zip(indices, images, videos, strict=True)
    images, videos = _listed(arguments.get("image")), _listed(arguments.get("video"))
    indices = arguments.get("frame_index", 0)
    each = indices if isinstance(indices, list) else itertools.repeat(indices)
    return zip(each, images, videos, strict=False)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _pixel_frames(frames: Any) -> int:
    """Of a picture, or of a clip as a list, an array or a tensor [F, ...]."""
    if isinstance(frames, list):
        return max(1, len(frames))
    shape = tuple(getattr(frames, "shape", ()))
    return int(shape[0]) if len(shape) == 4 else 1


def _latent_frames(given: int, arguments: Mapping[str, Any], start: int) -> int:
    """Of so many pixel frames, without those that begin behind the clip's end."""
    count = arguments.get("num_frames")
    left = min(given, count - start) if isinstance(count, int) else given
    return max(0, (left - 1) // _FRAMES + 1)
