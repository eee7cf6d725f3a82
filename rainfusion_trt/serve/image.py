"""An image of a request, decoded with care: it comes from a stranger."""

from __future__ import annotations

import io
import threading
import warnings

from rainfusion_trt.serve.errors import ServiceError

_FORMATS = ("PNG", "JPEG", "WEBP")
# One at a time: the largest takes hundreds of megabytes, and filters of warnings are the process's.
_DECODING = threading.Lock()


def clean_image(data: bytes, *, most_pixels: int, field: str = "input_reference") -> bytes:
    """An uploaded image as a plain PNG file: pixels alone, upright, RGB.

    Parameters
    ----------
    data
        A PNG, JPEG or WebP file.
    most_pixels
        Width times height; read off the header, before anything is decoded.
    field
        Of the request that it came in, which errors name.

    Raises
    ------
    ServiceError
        It is something else, damaged or too large.
    """
    from PIL import Image, ImageOps

    try:
        with _DECODING, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > most_pixels:
                    raise _refused(
                        field, f"has {image.width}x{image.height} pixels, more than {most_pixels}"
                    )
                upright = ImageOps.exif_transpose(image.convert("RGB"))
    except ServiceError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _refused(field, f"has more than {most_pixels} pixels") from error
    except Exception as error:  # decoders raise many types for damaged files
        raise _refused(field, "is no PNG, JPEG or WebP file, or is damaged") from error
    kept = io.BytesIO()
    Image.frombytes("RGB", upright.size, upright.tobytes()).save(kept, "PNG")
    return kept.getvalue()


def _refused(field: str, what: str) -> ServiceError:
    return ServiceError(
        f"{field} {what}: send a smaller or another image",
        code="invalid_image",
        param=field,
    )
