"""Pictures and clips that a generation starts from, of any form, as Pillow's images.

One form for all, because diffusers' pipelines take different ones, and scale a tensor to the clip
by its nearest pixels where they filter an image. What has no one meaning, such as transparency, is
an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.pixels import IMAGE_MODES, grey_levels

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_SCALE_16 = 257  # 65535 / 255
_CHANNELS = (1, 3, 4)
_OPAQUE = 255


def read_image(value: Any, name: str = "image") -> Image:
    """One picture in 8-bit RGB, upright.

    Parameters
    ----------
    value : path, PIL.Image.Image, numpy.ndarray or Tensor
        A file that Pillow reads; an image; an array [H, W], [H, W, C] or [1, H, W, C]; a tensor
        [H, W], [C, H, W] or [1, C, H, W] (also channels last). C is 1, 3, or 4 with an opaque
        alpha. Integers are grey levels from 0 to 255, floating values lie in [0, 1] and are rounded
        to grey levels.
    name : str
        What errors call it.

    Raises
    ------
    InvalidInputError
        No picture, one that cannot be decoded, is animated, has transparent parts or no pixels, or
        values out of their range.
    """
    from PIL import Image

    if isinstance(value, (str, Path)):
        return _from_file(Path(value), name)
    if isinstance(value, Image.Image):
        return _upright_rgb(value, name)
    if isinstance(value, np.ndarray) or hasattr(value, "detach"):
        return _from_array(value, name)
    raise InvalidInputError(
        f"{name} is a {type(value).__name__}: give a path, an image of Pillow, a NumPy array or a "
        "tensor"
    )


def read_images(value: Any, name: str = "image") -> Image | list[Image]:
    """One picture, or a list of them where a list, or a batch of more than one, is given."""
    batch = list(value) if isinstance(value, (list, tuple)) or _dims(value) == 4 else [value]
    if not batch:
        raise InvalidInputError(f"{name} is an empty list: give a picture")
    if len(batch) == 1:
        return read_image(batch[0], name)
    return [read_image(one, f"{name} {index}") for index, one in enumerate(batch)]


def read_clip(value: Any, name: str = "video") -> list[Any]:
    """The frames of a clip, or of each clip of a batch, as `read_image` gives them.

    Parameters
    ----------
    value : path, sequence of frames, numpy.ndarray or Tensor
        A video file; pictures of any form; an array [T, H, W, C] or tensor [T, C, H, W], with one
        axis more for a batch; or a list of clips.
    name : str
        What errors call it.

    Raises
    ------
    InvalidInputError
        What `read_image` or `load_video` refuses, no frames, or frames of several sizes.
    """
    if isinstance(value, (str, Path)):
        from rainfusion_trt.video import load_video

        return [_upright_rgb(_image_of(frame), name) for frame in load_video(value)]
    if _dims(value) in (None, 4, 5) and isinstance(value, Iterable):
        items = list(value)
    else:
        raise InvalidInputError(
            f"{name} is {_kind(value)}: give a path, a list of frames, an array [T, H, W, 3] or a "
            "tensor [T, 3, H, W]"
        )
    if not items:
        raise InvalidInputError(f"{name} has no frames")
    if _dims(items[0]) == 4 or isinstance(items[0], (list, tuple)):
        clips = [read_clip(item, f"{name} {index}") for index, item in enumerate(items)]
        return clips[0] if len(clips) == 1 else clips
    frames = [read_image(frame, f"frame {index} of {name}") for index, frame in enumerate(items)]
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        found = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise InvalidInputError(f"{name} has frames of {found} pixels: give frames of one size")
    return frames


def _from_file(path: Path, name: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise InvalidInputError(f"{name} {path} {kind}: name a file with a picture")
    try:
        with Image.open(path) as image:
            return _upright_rgb(image, f"{name} {path}")
    except InvalidInputError:
        raise
    except UnidentifiedImageError as error:
        raise InvalidInputError(
            f"{name} {path} is no picture that Pillow can read: convert it to PNG or JPEG"
        ) from error
    # Pillow's decoders raise whatever a damaged file leads them to.
    except Exception as error:
        raise InvalidInputError(f"{name} {path} cannot be decoded: {error}") from error


def _upright_rgb(image: Image, name: str) -> Image:
    from PIL import ImageOps

    if 0 in image.size:
        raise InvalidInputError(f"{name} has {image.width}x{image.height} pixels: give a picture")
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":  # a camera's file of one picture and its variants
        raise InvalidInputError(
            f"{name} is animated, of {count} frames: give one of them, or all as video="
        )
    image = ImageOps.exif_transpose(image)
    if image.mode in _GREY_16:
        levels = np.asarray(image).astype(np.float32) / _SCALE_16
        return _image_of(levels.round().astype(np.uint8)).convert("RGB")
    if image.mode not in (*IMAGE_MODES, "PA"):
        raise InvalidInputError(f"{name} is an image of mode {image.mode}: convert it to RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        _check_opaque(np.asarray(image.getchannel("A")), name)
    return image.convert("RGB")


def _from_array(value: Any, name: str) -> Image:
    array = _channels_last(value)
    shape = list(value.shape)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in _CHANNELS or 0 in array.shape:
        wanted = "[height, width, 3]" if isinstance(value, np.ndarray) else "[3, height, width]"
        raise InvalidInputError(f"{name} has shape {shape}, expected {wanted}")
    levels = grey_levels(array, name)
    if levels.shape[-1] == 4:
        _check_opaque(levels[..., 3], name)
    return _image_of(np.ascontiguousarray(np.broadcast_to(levels[..., :3], (*levels.shape[:2], 3))))


def _channels_last(value: Any) -> np.ndarray:
    """An array as it is; a tensor with its channels moved to the end, unless they are there."""
    if isinstance(value, np.ndarray):
        return value
    value = value.detach()
    # NumPy has no bfloat16.
    array = (value.float() if value.is_floating_point() else value).cpu().numpy()
    if array.ndim in (3, 4) and array.shape[-3] in _CHANNELS:
        array = np.moveaxis(array, -3, -1)
    return array


def _check_opaque(alpha: np.ndarray, name: str) -> None:
    if alpha.min() < _OPAQUE:
        raise InvalidInputError(
            f"{name} has transparent parts, which no video has: put it on a background before"
        )


def _image_of(array: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(array)


def _dims(value: Any) -> int | None:
    """Number of axes of an array or tensor; None for what is neither."""
    return getattr(value, "ndim", None)


def _kind(value: Any) -> str:
    dims = _dims(value)
    return f"a {type(value).__name__}" + ("" if dims is None else f" of {dims} axes")
