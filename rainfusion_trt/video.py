"""Frames of a diffusers pipeline as an mp4 file."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np

from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
from rainfusion_trt.files.place import check_file
from rainfusion_trt.files.seal import DIGITS, Seal
from rainfusion_trt.files.staging import staging

_CODECS = ("libx264", "mpeg4")  # the better first; wheels built without GPL parts lack libx264
_MAX_FPS = 1000
_TOLERANCE = 1e-2  # of floating values beyond [0, 1]: rounding, and the overshoot of a resize
_IMAGE_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "1")
_QUALITY = {"libx264": {"crf": "17"}, "mpeg4": {"qscale": "2"}}


# An mp4 file is a sequence of boxes: length, type, and here a UUID that says whose box it is.
# Players skip boxes of type `uuid`, and programs that change or copy a video drop them.
_OWNER = uuid.UUID("6f3dbc5c-3f0e-5d0b-9a53-5f6b8c0f27a1").bytes + b"rainfusion-trt video 1\n"
_SEAL = Seal((8 + len(_OWNER) + DIGITS).to_bytes(4, "big") + b"uuid" + _OWNER)


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
    if clip.dtype == np.uint8:
        return clip
    if clip.dtype.kind not in "iuf":
        raise InvalidInputError(
            f"the clip holds {clip.dtype}: give integers from 0 to 255, or floating values in "
            "[0, 1]"
        )
    low, high = clip.min(), clip.max()
    if clip.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InvalidInputError("the clip holds values that are not finite")
        if low < -_TOLERANCE or high > 1.0 + _TOLERANCE:
            raise InvalidInputError(
                f"the clip holds floating values from {low:g} to {high:g}, which have to lie in "
                "[0, 1]: divide grey levels by 255, or bring [-1, 1] there by x / 2 + 0.5"
            )
        return (clip.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    if low < 0 or high > 255:
        raise InvalidInputError(
            f"the clip holds integers from {low} to {high}: give grey levels from 0 to 255"
        )
    return clip.astype(np.uint8)


def _as_array(frames: Any) -> np.ndarray:
    """The frames of any form, stacked; channels last where they came from a tensor."""
    if not hasattr(frames, "detach") and not isinstance(frames, np.ndarray):
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
        if frame.mode not in _IMAGE_MODES:
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


def side_by_side(left: Any, right: Any, *, gap: int = 4) -> np.ndarray:
    """Two clips of one size next to each other, uint8 [T, H, 2 W + gap, 3], white between them."""
    first, second = to_uint8(left), to_uint8(right)
    if first.shape != second.shape:
        raise InvalidInputError(
            f"clips of shapes {list(first.shape)} and {list(second.shape)} do not fit side by side"
        )
    frames, height = first.shape[:2]
    line = np.full((frames, height, gap, 3), 255, dtype=np.uint8)
    return np.concatenate([first, line, second], axis=2)


def save_video(frames: Any, path: str | Path, *, fps: int, overwrite: bool = False) -> Path:
    """Write a clip as mp4: H.264 where the installed PyAV has it, else MPEG-4 part 2.

    Odd heights and widths are made even by repeating the last row or column, as the pixel format
    of players (yuv420p) needs.

    Parameters
    ----------
    frames
        One clip, see `to_uint8`.
    path
        The file; its folder is made, and it appears only when it is complete.
    fps : int
        Frames per second.
    overwrite : bool
        Replace a file of other origin. One that this function wrote, and nobody has changed since,
        is replaced in any case.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InvalidInputError
        Frames or `fps` that do not fit, or what `check_target` refuses.
    BackendUnavailableError
        PyAV is not installed, or has no encoder.
    """
    path = check_target(path, overwrite=overwrite)
    check_fps(fps)
    clip = to_uint8(frames)
    height, width = clip.shape[1:3]
    clip = np.pad(clip, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with staging(path) as stage:
        made = stage.new / path.name
        _encode(clip, made, fps)
        _SEAL.put_on(made)
        check_target(path, overwrite=overwrite)  # another may have come meanwhile
        stage.publish()
    return path


def check_fps(fps: Any) -> int:
    """A frame rate; raises InvalidInputError if no video can have it."""
    if isinstance(fps, bool) or not isinstance(fps, int) or not 1 <= fps <= _MAX_FPS:
        raise InvalidInputError(f"fps is {fps!r}: give an integer from 1 to {_MAX_FPS}")
    return fps


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """The path of a video to be written; raises before hours of work if it cannot be one.

    Parameters
    ----------
    path
        The file.
    overwrite
        Whether a file of other origin may be replaced.

    Raises
    ------
    InvalidInputError
        Not an .mp4, a folder or link, a file of other origin, or a folder that cannot be written.
    BackendUnavailableError
        PyAV is not installed, or has no encoder.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise InvalidInputError(f"output {path} has to end in .mp4")
    check_file(
        path,
        ours=lambda there: overwrite or _SEAL.is_on(there),
        remedy=", or say that it may be overwritten (--overwrite)",
    )
    _encoder()
    return path


def _encoder() -> tuple[Any, str]:
    """PyAV, and the name of the encoder it is used with."""
    try:
        import av
    except ImportError as error:
        raise BackendUnavailableError("writing mp4 needs PyAV: pip install av") from error
    codec = next((name for name in _CODECS if name in av.codecs_available), None)
    if codec is None:
        raise BackendUnavailableError(
            f"this PyAV has none of the encoders {', '.join(_CODECS)}: pip install --upgrade av"
        )
    return av, codec


def _encode(clip: np.ndarray, path: Path, fps: int) -> None:
    av, codec = _encoder()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=_QUALITY[codec])
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in clip:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
