"""The clips that a model makes, and the calls of its pipeline that no graph is of."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.clip import GenerationDefaults, VideoSize
from rainfusion_trt.models.inputs import Profiles

TextBounds = tuple[int | None, int | None]
"""The fewest and the most tokens of text; None for no bound."""


class ModelClips:
    """The part of a `VideoModel` that knows sizes, and what a call may not ask for.

    Attributes
    ----------
    name : str
        In the registry.
    defaults : GenerationDefaults
        Defaults of the pipeline. Errors give their size as one that works.
    vae_frames, vae_pixels : int
        Pixel frames a latent frame, after the first; pixels a latent row or column.
    patch_frames, patch_pixels : int
        Latent frames, and latent rows or columns, a token.
    """

    name: str
    defaults: GenerationDefaults
    vae_frames: int = 4
    vae_pixels: int = 8
    patch_frames: int = 1
    patch_pixels: int = 2

    def _latent_size(self, size: VideoSize) -> tuple[int, int, int]:
        """Latent frames (in whole tokens, as the pipeline pads them), rows and columns of a clip.

        Raises
        ------
        InvalidInputError
            The model makes no clip of that size.
        """
        frames = self._latent_frames(size.frames)
        self._check_pixels({"height": size.height, "width": size.width})
        return frames, size.height // self.vae_pixels, size.width // self.vae_pixels

    def clip_of_graph(self, size: VideoSize, arguments: Mapping[str, Any]) -> VideoSize:
        """The clip that a call of the pipeline asks for so that a graph of `size` makes it.

        The same one, unless the pipeline adds frames of its own to what is asked for.

        Parameters
        ----------
        size : VideoSize
            Of the graph.
        arguments : mapping
            Of the call, as they are given.

        Raises
        ------
        InvalidInputError
            What the pipeline adds leaves no frame of the graph.
        """
        return size

    def _without_latents(self, size: VideoSize, count: int, what: str) -> VideoSize:
        """A clip of as many latent frames less, which a pipeline adds for `what`."""
        frames = size.frames - count * self.vae_frames
        if frames < 1:
            raise InvalidInputError(
                f"{self.name}: {what} add {count} latent frames, and the graph of {size} has none "
                "left for a clip: give fewer, or export with more frames"
            )
        return replace(size, frames=frames)

    def check_call(  # noqa: B027
        self, arguments: Mapping[str, Any], *, text_tokens: TextBounds = (None, None)
    ) -> None:
        """Refuse a call of the pipeline some of whose forwards no graph is of.

        Where arguments tell it, so that it is said before any work.

        Parameters
        ----------
        arguments : mapping
            Of the call, those that are not given by the pipeline's defaults.
        text_tokens
            The fewest and the most tokens of text that the graphs take; None for no bound.

        Raises
        ------
        UnsupportedError
            There are such forwards.
        """

    def check_conditions(  # noqa: B027
        self, arguments: Mapping[str, Any], profiles: Profiles
    ) -> None:
        """Refuse conditions for whose tokens graphs have no room, as far as arguments tell it.

        Parameters
        ----------
        arguments : mapping
            As in `check_call`.
        profiles : sequence of mapping
            What the graph takes.

        Raises
        ------
        UnsupportedError
            They have not; said before any work.
        """

    def check_start(self, media: Collection[str]) -> None:  # noqa: B027
        """Refuse pictures and clips that the model has no place for together, by their names.

        Raises
        ------
        InvalidInputError
            There are too many, or one is missing.
        """

    def check_media(self, arguments: Mapping[str, Any], *, exported: bool) -> None:  # noqa: B027
        """Refuse pictures and clips that do not fit the clip that a call asks for.

        Parameters
        ----------
        arguments : mapping
            As in `check_call`; pictures are images of Pillow, clips lists of them.
        exported : bool
            Whether a graph runs, and not PyTorch.

        Raises
        ------
        InvalidInputError
            One does not fit; said before any work.
        """

    def _check_pixels(self, sides: Mapping[str, Any]) -> None:
        """Raise InvalidInputError for a height or width that is not of whole tokens."""
        unit = self.vae_pixels * self.patch_pixels
        for name in ("height", "width"):
            pixels = sides.get(name)
            if pixels is not None and (pixels < unit or pixels % unit):
                raise self._bad_size(name, pixels, f"a multiple of {unit}")

    def check_frames(self, frames: int) -> None:
        """Raise InvalidInputError if the model makes no clip of that many frames."""
        self._latent_frames(frames)

    def frame_counts(self) -> tuple[int, int]:
        """The smallest number of frames of a clip, and the step from each to the next."""
        allowed = []
        for frames in range(1, 3 * self.vae_frames + 2):
            with contextlib.suppress(InvalidInputError):
                self._latent_frames(frames)
                allowed.append(frames)
        return allowed[0], allowed[1] - allowed[0]

    def _latent_frames(self, frames: int) -> int:
        if frames < 1 or (frames - 1) % self.vae_frames:
            raise self._bad_size("frames", frames, f"{self.vae_frames}k + 1")
        latent_frames = (frames - 1) // self.vae_frames + 1
        return latent_frames + -latent_frames % self.patch_frames

    def _bad_size(self, name: str, value: int, expected: str) -> InvalidInputError:
        usual = getattr(self.defaults.size, name)
        return InvalidInputError(
            f"{name}={value} must be {expected} for {self.name}, such as {usual}"
        )
