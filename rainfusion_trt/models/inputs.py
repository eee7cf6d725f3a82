"""Inputs of a model's graph, stated once: shapes, dynamic axes and example values follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.examples import Example, normal

# Axes whose extents follow from a clip's size and the batch. The grid is that of the tokens.
CLIP_AXES = (
    "batch",
    "frames",
    "height",
    "width",
    "grid_frames",
    "grid_height",
    "grid_width",
    "video_tokens",
)


class InputBounds(Protocol):
    """What an exported graph takes of one input.

    Attributes
    ----------
    max_shape : tuple of (int or None)
        The most of each axis; None for no bound.
    """

    @property
    def max_shape(self) -> tuple[int | None, ...]: ...

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether it takes that shape."""
        ...


Profiles = Sequence[Mapping[str, InputBounds]]
"""What a graph takes of its inputs together: one, or one for each optimisation profile."""


@dataclass(frozen=True)
class GraphInput:
    """One input of a model's graph.

    Attributes
    ----------
    name : str
        Its name in the graph. Most have the name of an argument of the transformer's forward;
        `VideoModel.forward_kwargs` converts the others.
    axes : tuple of str or int
        An axis for each dimension. A name of `CLIP_AXES` or of the model's `sequences` may vary
        and becomes the name of the dimension in the ONNX file. Any other name is a key of the
        transformer's configuration, whose value is the extent, or a list as long as that. A number
        is the extent itself.
    dtype : torch.dtype, optional
        None for the transformer's own.
    example : Example, optional
        Makes its values where nobody gives any; None where `VideoModel.computed_inputs` does.
    """

    name: str
    axes: tuple[str | int, ...]
    dtype: torch.dtype | None = None
    example: Example | None = normal

    def shape(self, extents: Mapping[str, int], config: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape for the given extents of varying axes.

        Parameters
        ----------
        extents : mapping
            As `VideoModel.extents` gives them.
        config : mapping
            The transformer's configuration.

        Raises
        ------
        InvalidInputError
            The configuration lacks a key.
        """
        everything = {**config, **extents}
        return tuple(extent_of(axis, everything) for axis in self.axes)


def extent_of(axis: str | int, config: Mapping[str, Any]) -> int:
    """The extent of an axis that is a number or a key of the transformer's configuration.

    Raises
    ------
    InvalidInputError
        The configuration has neither a whole number nor a list there.
    """
    if isinstance(axis, int):
        return axis
    extent = config.get(axis)
    if isinstance(extent, (list, tuple)):
        return len(extent)
    if not isinstance(extent, int):
        raise InvalidInputError(
            f"the transformer's configuration has {axis}={extent!r}, and a shape of the graph's "
            "inputs needs that number: give the configuration of a checkpoint's config.json"
        )
    return extent
