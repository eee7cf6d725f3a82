"""Frames of any form that diffusers has, as one array of pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from rainfusion_trt.errors import InvalidInputError

IMAGE_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "1")
"""Modes of Pillow that are RGB without a choice to be made."""

_TOLERANCE = 1e-2  # of floating values beyond [0, 1]: rounding, and the overshoot of a resize


def to_uint8(frames: Any) -> np.ndarray:
    """Frames as one array of pixels.

    Parameters
    ----------
    frames : sequence of PIL.Image.Image, numpy.ndarray or Tensor
        One clip, that is `frames[i]` of a diffusers output: images; arrays [T, H, W, 3]; or a
        tensor [T, 3, H, W] (also [T, H, W, 3]). Integers are grey levels from 0 to 255, floating
        values lie in [0, 1].

    Returns
    -------
    numpy.ndarray
        uint8 [T, H, W, 3].

    Raises
    ------
    InvalidInputError
        Another shape, no frames, or values that are not finite or out of their range.
    """
    clip = _as_array(frames)
    if clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise InvalidInputError(
            f"the clip has shape {list(clip.shape)}, expected [frames, height, width, 3]: give one "
            "clip, such as output.frames[0]"
        )
    return grey_levels(clip, "the clip")


def grey_levels(array: np.ndarray, name: str) -> np.ndarray:
    """Integers from 0 to 255, or floating values in [0, 1], as uint8 of the same shape.

    Raises
    ------
    InvalidInputError
        Values that are not finite or out of their range; the message calls the array `name`.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise InvalidInputError(
            f"{name} holds {array.dtype}: give integers from 0 to 255, or floating values in [0, 1]"
        )
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InvalidInputError(f"{name} holds values that are not finite")
        if low < -_TOLERANCE or high > 1.0 + _TOLERANCE:
            raise InvalidInputError(
                f"{name} holds floating values from {low:g} to {high:g}, which have to lie in "
                "[0, 1]: divide grey levels by 255, or bring [-1, 1] there by x / 2 + 0.5"
            )
        return (array.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    if low < 0 or high > 255:
        raise InvalidInputError(
            f"{name} holds integers from {low} to {high}: give grey levels from 0 to 255"
        )
    return array.astype(np.uint8)


def _as_array(frames: Any) -> np.ndarray:
    """The frames of any form, stacked; channels last where they came from a tensor."""
    if not hasattr(frames, "detach") and not isinstance(frames, np.ndarray):
        if not isinstance(frames, Iterable):
            hint = " (the first process alone has frames)" if frames is None else ""
            raise InvalidInputError(f"the clip is {frames!r:.80}: give frames{hint}")
        frames = list(frames)
        if not frames:
            raise InvalidInputError("the clip has no frames")
        arrays = [_frame(frame) for frame in frames]
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1:
            raise InvalidInputError(
                f"the clip has frames of shapes {', '.join(map(str, shapes))}: give frames of one "
                "size"
            )
        return np.stack(arrays)
    return _channels_last(frames, 4)


def _frame(frame: Any) -> np.ndarray:
    if hasattr(frame, "convert"):  # a PIL image
        if frame.mode not in IMAGE_MODES:
            raise InvalidInputError(
                f"a frame is an image of mode {frame.mode}: convert it to RGB before"
            )
        frame = frame.convert("RGB")
    return _channels_last(frame, 3)


def _channels_last(value: Any, dims: int) -> np.ndarray:
    """An array as it is; a tensor with its channels moved to the end."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach()
    # NumPy has no bfloat16.
    array = (value.float() if value.is_floating_point() else value).cpu().numpy()
    if array.ndim == dims and array.shape[-3] == 3:
        array = np.moveaxis(array, -3, -1)
    return array
