"""What requests may bring beside their text: which files, under which names, and how each is read.

The one list of them. All else (the door, the store, the worker, the page) goes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import combinations

from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.image import clean_image
from rainfusion_trt.serve.settings import Limits
from rainfusion_trt.serve.worker import Media, ModelDescription


@dataclass(frozen=True)
class Medium:
    """A file of a request.

    Attributes
    ----------
    name : str
        Of the argument of `Pipeline`; so it is called within the service.
    field : str
        Of requests, and in errors of the service.
    words : str
        What it is, in sentences.
    label : str
        What the page says of it.
    """

    name: str
    field: str
    words: str
    label: str


MEDIA = (
    Medium("image", "input_reference", "an image", "First frame, for models that take one"),
    Medium("last_image", "last_image", "a last image", "Last frame, for models that take one"),
)
"""In the order in which a `ModelDescription` has their names."""

BY_FIELD = {one.field: one for one in MEDIA}
BY_NAME = {one.name: one for one in MEDIA}


def clean_media(media: Media, limits: Limits) -> Media:
    """Uploaded files as plain ones of our own, see `rainfusion_trt.serve.image`.

    Raises
    ------
    ServiceError
        One is something else, damaged or too large.
    """
    return {
        one.name: clean_image(media[one.name], most_pixels=limits.image_pixels, field=one.field)
        for one in MEDIA
        if one.name in media
    }


def starts_of(takes: Callable[..., bool]) -> tuple[tuple[str, ...], ...]:
    """What a generation may start from beside its text: every set of files that is taken.

    Parameters
    ----------
    takes
        Such as `Pipeline.takes`.
    """
    sets = (found for count in range(len(MEDIA) + 1) for found in combinations(BY_NAME, count))
    return tuple(found for found in sets if takes(*found))


def check_start(given: Collection[str], model: ModelDescription) -> None:
    """Refuse files that the model has no use for, and a request without those that it needs.

    Parameters
    ----------
    given
        Names of `MEDIA`.

    Raises
    ------
    ServiceError
        It makes no such video.
    """
    asked = tuple(one.name for one in MEDIA if one.name in given)
    if asked in model.starts:
        return
    larger = [start for start in model.starts if set(asked) < set(start)]
    if larger:
        start = min(larger, key=len)
        missing = _fields(name for name in start if name not in asked)
        raise ServiceError(
            f"{model.model} makes videos of {_words(start)}: send {' and '.join(missing)}",
            code="missing_image",
            param=missing[0],
        )
    smaller = [start for start in model.starts if set(start) < set(asked)]
    start = max(smaller, key=len, default=model.starts[0])
    over = _fields(name for name in asked if name not in start)
    raise ServiceError(
        f"{model.model} makes videos of {_words(start)}: leave out {' and '.join(over)}",
        code="unsupported",
        param=over[0],
    )


def _words(names: Collection[str]) -> str:
    return " and ".join(one.words for one in MEDIA if one.name in names) or "text alone"


def _fields(names: Iterable[str]) -> list[str]:
    return [BY_NAME[name].field for name in names]
