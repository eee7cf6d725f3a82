"""Frames of a diffusers pipeline as an mp4 file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError

_CODECS = ("libx264", "mpeg4")  # the better first; wheels built without GPL parts lack libx264
_QUALITY = {"libx264": {"crf": "17"}, "mpeg4": {"qscale": "2"}}


def to_uint8(frames: Any) -> np.ndarray:
    """Frames as one array of pixels.

    Parameters
    ----------
    frames : list of PIL.Image.Image, numpy.ndarray or Tensor
        One clip, that is `frames[i]` of a diffusers output: images; arrays [T, H, W, 3], uint8 or
        floating in [0, 1]; or a tensor [T, 3, H, W] in [0, 1].

    Returns
    -------
    numpy.ndarray
        uint8 [T, H, W, 3].

    Raises
    ------
    InvalidInputError
        Another shape, no frames, or values that are not finite.
    """
    if hasattr(frames, "detach"):
        frames = frames.detach().float().cpu().numpy()
        if frames.ndim == 4 and frames.shape[1] == 3:
            frames = frames.transpose(0, 2, 3, 1)
    if isinstance(frames, Sequence) and not len(frames):
        raise InvalidInputError("the clip has no frames")
    clip = np.stack([np.asarray(frame) for frame in frames])
    if clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise InvalidInputError(
            f"the clip has shape {list(clip.shape)}, expected [frames, height, width, 3]: give one "
            "clip, such as output.frames[0]"
        )
    if clip.dtype == np.uint8:
        return clip
    if not np.isfinite(clip).all():
        raise InvalidInputError("the clip holds values that are not finite")
    return (clip.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)


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


def save_video(frames: Any, path: str | Path, *, fps: int) -> Path:
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

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InvalidInputError
        Frames or `fps` that do not fit, or a path that does not end in .mp4.
    BackendUnavailableError
        PyAV is not installed.
    """
    path = check_target(path)
    if isinstance(fps, bool) or not isinstance(fps, int) or fps < 1:
        raise InvalidInputError(f"fps is {fps!r}: give an integer from 1 on")
    clip = to_uint8(frames)
    height, width = clip.shape[1:3]
    clip = np.pad(clip, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".video-") as scratch:
        temporary = Path(scratch) / path.name
        _encode(clip, temporary, fps)
        temporary.replace(path)
    return path


def check_target(path: str | Path) -> Path:
    """The path of a video to be written; raises before hours of work if it cannot be one."""
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise InvalidInputError(f"output {path} has to end in .mp4")
    return path


def _encode(clip: np.ndarray, path: Path, fps: int) -> None:
    try:
        import av
    except ImportError as error:
        raise BackendUnavailableError("writing mp4 needs PyAV: pip install av") from error
    codec = next((name for name in _CODECS if name in av.codecs_available), None)
    if codec is None:
        raise BackendUnavailableError(
            f"this PyAV has none of the encoders {', '.join(_CODECS)}: pip install --upgrade av"
        )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=_QUALITY[codec])
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in clip:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
