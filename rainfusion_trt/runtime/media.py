"""Pictures and clips among the arguments of a call, read before any work starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.images import read_clip, read_images
from rainfusion_trt.runtime.pipes import MEDIA, parameters_of

logger = logging.getLogger("rainfusion_trt")


def _read_references(value: Any, name: str) -> Any:
    """Pictures of the only clip of a batch, which VACE also takes as a list in a list."""
    if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], (list, tuple)):
        value = value[0]
    return read_images(value, name)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("image", "last_image", "cond_image"), read_images),
    "reference_images": _read_references,
    **dict.fromkeys(("video", "control_video", "mask"), read_clip),
    **dict.fromkeys(("pose_video", "face_video", "background_video", "mask_video"), read_clip),
}
assert set(_READERS) == set(MEDIA)
# Faces are of a size of their own, references are put on a background, masks follow their video.
_NOT_STRETCHED = ("face_video", "reference_images", "mask", "mask_video")
_STRETCH = 1.05  # of one axis against the other, from which it is said


def read_media(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with their pictures and clips as images of Pillow.

    Raises
    ------
    InvalidInputError
        One that cannot be read.
    """
    return {
        name: _READERS[name](value, name) if name in _READERS else value
        for name, value in arguments.items()
    }


def read_named(paths: Mapping[str, Any]) -> dict[str, Any]:
    """The pictures and clips of options that were given, without those that were not.

    Raises
    ------
    InvalidInputError
        One that cannot be read.
    """
    return read_media({name: path for name, path in paths.items() if path is not None})


def frames_of_video(pipe: Any, arguments: Mapping[str, Any]) -> int | None:
    """Frames of the clip where they are those of the video that is given; else None.

    Raises
    ------
    InvalidInputError
        Several videos of different lengths.
    """
    video = arguments.get("video") or arguments.get("control_video")
    if not video or "num_frames" in parameters_of(type(pipe)):
        return None
    lengths = sorted({len(clip) for clip in video}) if isinstance(video[0], list) else [len(video)]
    if len(lengths) > 1:
        raise InvalidInputError(
            f"video holds clips of {' and '.join(map(str, lengths))} frames: give clips of one "
            "length"
        )
    return lengths[0]


def size_of_image(pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the clip where the pipeline takes them from the image; else None."""
    image, target = arguments.get("image"), getattr(pipe, "target_size", None)
    if target is None or "height" in parameters_of(type(pipe)):
        return None
    if image is None or isinstance(image, list):  # which diffusers refuses there
        return None
    height, width = pipe.video_processor.calculate_default_height_width(
        height=image.height, width=image.width, target_size=target
    )
    return int(height), int(width)


def say_stretch(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Warn of pictures of another shape than the clip, which diffusers fits in its own way."""
    known = parameters_of(type(pipe))
    size = {
        name: arguments.get(name, known[name].default)
        for name in ("height", "width")
        if name in known
    }
    if len(size) < 2 or not all(isinstance(extent, int) for extent in size.values()):
        return
    height, width = size["height"], size["width"]
    for name in _READERS:
        if name in _NOT_STRETCHED:
            continue
        picture = arguments.get(name)
        while isinstance(picture, list):
            picture = picture[0]
        if picture is None:
            continue
        stretch = (width * picture.height) / (height * picture.width)
        if not 1 / _STRETCH <= stretch <= _STRETCH:
            logger.warning(
                "%s has %dx%d pixels (width x height) and the clip %dx%d: %s may stretch it; crop "
                "it to that shape before, or ask for another height and width",
                name,
                picture.width,
                picture.height,
                width,
                height,
                type(pipe).__name__,
            )
