"""Frames and sound of a diffusers pipeline as an mp4 file, and the frames of a video file."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
from rainfusion_trt.files.place import check_file
from rainfusion_trt.files.seal import DIGITS, Seal
from rainfusion_trt.files.staging import staging
from rainfusion_trt.pixels import to_uint8 as to_uint8

_CODECS = ("libx264", "mpeg4")  # the better first; wheels built without GPL parts lack libx264
_MAX_FPS = 1000
_MOST_FRAMES = 1000  # of a file that is read; in memory, more than any model makes at once
_LAYOUTS = {1: "mono", 2: "stereo"}  # by the number of channels
_QUALITY = {"libx264": {"crf": "17"}, "mpeg4": {"qscale": "2"}}


# An mp4 file is a sequence of boxes: length, type, and here a UUID that says whose box it is.
# Players skip boxes of type `uuid`, and programs that change or copy a video drop them.
_OWNER = uuid.UUID("6f3dbc5c-3f0e-5d0b-9a53-5f6b8c0f27a1").bytes + b"rainfusion-trt video 1\n"
_SEAL = Seal((8 + len(_OWNER) + DIGITS).to_bytes(4, "big") + b"uuid" + _OWNER)


@dataclass(frozen=True)
class Sound:
    """What is heard with a clip.

    Attributes
    ----------
    samples : Tensor or numpy.ndarray
        Floating values in [-1, 1], [channels, samples] with one or two channels.
    rate : int
        Samples per second.
    """

    samples: Any
    rate: int

    def planes(self) -> np.ndarray:
        """float32 [channels, samples].

        Raises
        ------
        InvalidInputError
            Another shape, or a value that is not finite.
        """
        samples = self.samples
        if hasattr(samples, "detach"):
            samples = samples.detach().float().cpu().numpy()
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 2 or samples.shape[0] not in _LAYOUTS or not samples.shape[1]:
            raise InvalidInputError(
                f"sound has shape {list(samples.shape)}, expected [1 or 2 channels, samples]"
            )
        if not np.isfinite(samples).all():
            raise InvalidInputError("sound has NaN or infinity in it")
        return np.ascontiguousarray(samples.clip(-1.0, 1.0))


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


def save_video(
    frames: Any,
    path: str | Path,
    *,
    fps: int,
    sound: Sound | None = None,
    overwrite: bool = False,
) -> Path:
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
    sound : Sound, optional
        Written beside the frames, as AAC.
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
        Frames, `fps` or sound that do not fit, or what `check_target` refuses.
    BackendUnavailableError
        PyAV is not installed, or has no encoder.
    """
    path = check_target(path, overwrite=overwrite)
    check_fps(fps)
    clip = to_uint8(frames)
    heard = None if sound is None else (sound.planes(), sound.rate)
    height, width = clip.shape[1:3]
    clip = np.pad(clip, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with staging(path) as stage:
        made = stage.new / path.name
        _encode(clip, made, fps, heard)
        _SEAL.put_on(made)
        check_target(path, overwrite=overwrite)  # another may have come meanwhile
        stage.publish()
    return path


def load_video(path: str | Path) -> list[np.ndarray]:
    """The frames of a video file, upright, each uint8 [H, W, 3].

    Every frame there is, whatever the frame rate: to begin elsewhere, or to leave frames out, cut
    the file or give a list of frames.

    Raises
    ------
    InvalidInputError
        No file, no video, one that cannot be decoded, or of more frames than fit into memory.
    BackendUnavailableError
        PyAV is not installed.
    """
    path = Path(path)
    av = _pyav("reading a video")
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise InvalidInputError(f"video {path} {kind}: name a video file")
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InvalidInputError(f"video {path} has no pictures in it: name a video file")
            for frame in container.decode(video=0):
                if len(frames) == _MOST_FRAMES:
                    raise InvalidInputError(
                        f"video {path} has more than {_MOST_FRAMES} frames: cut it to the clip"
                    )
                # Phones store the picture lying, and beside it how far it has to be turned.
                turns = round(frame.rotation / 90)
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), turns).copy())
    except av.FFmpegError as error:
        raise InvalidInputError(f"video {path} cannot be decoded: {error.strerror}") from error
    if not frames:
        raise InvalidInputError(f"video {path} has no frames: name a video file")
    return frames


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
    av = _pyav("writing mp4")
    codec = next((name for name in _CODECS if name in av.codecs_available), None)
    if codec is None:
        raise BackendUnavailableError(
            f"this PyAV has none of the encoders {', '.join(_CODECS)}: pip install --upgrade av"
        )
    return av, codec


def _pyav(work: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise BackendUnavailableError(f"{work} needs PyAV: pip install av") from error
    return av


def _encode(
    clip: np.ndarray, path: Path, fps: int, sound: tuple[np.ndarray, int] | None = None
) -> None:
    av, codec = _encoder()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=_QUALITY[codec])
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        heard = None
        if sound is not None:  # before any packet, since the file's header lists the streams
            heard = container.add_stream("aac", rate=sound[1], layout=_LAYOUTS[len(sound[0])])
        for image in clip:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
        if heard is not None and sound is not None:
            samples, rate = sound
            frame = av.AudioFrame.from_ndarray(
                samples, format="fltp", layout=_LAYOUTS[len(samples)]
            )
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
            for packet in [*heard.encode(frame), *heard.encode()]:
                container.mux(packet)
