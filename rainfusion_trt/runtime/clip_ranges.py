"""Which clips the optimisation profiles of engines take, in frames and pixels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from rainfusion_trt.engine.recipe import ShapeRange
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import VideoModel, VideoSize
from rainfusion_trt.runtime.artifacts import Artifacts

Bounds = tuple[int, int]
Shapes = Mapping[str, ShapeRange]

_AXES = {
    "frames": ("frames", "grid_frames"),
    "height": ("height", "grid_height"),
    "width": ("width", "grid_width"),
}
_GAP = 8  # Allegro makes fewer latent frames of an even number than of the odd one before
_MOST = 2**15  # pixels or frames, which no clip has


@dataclass(frozen=True)
class ClipRange:
    """Clips between two sizes, both included: smallest and largest of each."""

    frames: Bounds
    height: Bounds
    width: Bounds

    def __contains__(self, size: VideoSize) -> bool:
        return all(
            low <= getattr(size, name) <= high
            for name, (low, high) in ((name, getattr(self, name)) for name in _AXES)
        )

    @property
    def largest(self) -> VideoSize:
        """The largest clip of it."""
        return VideoSize(self.frames[1], self.height[1], self.width[1])


def clip_ranges(artifacts: Artifacts, backend: str) -> tuple[ClipRange, ...]:
    """A range for each profile of a backend's engines; none where no profile bounds the clip.

    Of several engines, those of one generation, what all of them take.
    """
    model, usual = artifacts.model, artifacts.size or artifacts.model.defaults.size
    of_parts = []
    for part in artifacts.parts:
        profiles = part.graph_of(backend).profiles if part.graphs else ()
        if profiles:
            config = part.config or {}
            ranges = (_of_profile(model, config, usual, shapes) for shapes in profiles)
            of_parts.append([found for found in ranges if found is not None])
    if not of_parts:
        return ()
    common = (_intersection(chosen) for chosen in itertools.product(*of_parts))
    return tuple(dict.fromkeys(found for found in common if found is not None))


def _of_profile(
    model: VideoModel, config: Mapping[str, object], usual: VideoSize, shapes: Shapes
) -> ClipRange | None:
    """The clips of a profile; None if there are none."""
    axes = _bounds_of_axes(model, shapes)
    first, step = model.frame_counts()
    unit = model.vae_pixels * model.patch_pixels
    values = {"frames": range(first, _MOST, step)}
    values |= dict.fromkeys(("height", "width"), range(unit, _MOST, unit))
    found = {}
    for name, candidates in values.items():

        def fits(value: int, name: str = name) -> bool:
            extents = model.extents(config, replace(usual, **{name: value}), 1)
            return all(
                axes[axis][0] <= extents[axis] <= axes[axis][1]
                for axis in _AXES[name]
                if axis in axes
            )

        bounds = _ends(candidates, fits)
        if bounds is None:
            return None
        found[name] = bounds
    return ClipRange(**found)


def _bounds_of_axes(model: VideoModel, shapes: Shapes) -> dict[str, Bounds]:
    """The least and the most of every axis of the clip, over the inputs that have it."""
    axes: dict[str, Bounds] = {}
    for given in model.inputs:
        if given.name not in shapes:
            continue
        known = shapes[given.name]
        for axis, low, high in zip(given.axes, known.min, known.max, strict=True):
            if isinstance(axis, str):
                least, most = axes.get(axis, (low, high))
                axes[axis] = (max(least, low), min(most, high))
    return axes


def _ends(candidates: Iterable[int], fits: Callable[[int], bool]) -> Bounds | None:
    """The first and the last candidate that fit."""
    low = high = None
    misses = 0
    for value in candidates:
        try:
            good = fits(value)
        except InvalidInputError:  # a position table of one size
            good = False
        if good:
            low, high, misses = (value if low is None else low), value, 0
        elif low is not None:
            misses += 1
            if misses > _GAP:
                break
    return None if low is None or high is None else (low, high)


def _intersection(ranges: Iterable[ClipRange]) -> ClipRange | None:
    found = list(ranges)
    bounds = {}
    for name in _AXES:
        both = [getattr(one, name) for one in found]
        bounds[name] = (max(low for low, _ in both), min(high for _, high in both))
        if bounds[name][0] > bounds[name][1]:
            return None
    return ClipRange(**bounds)
