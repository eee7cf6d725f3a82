"""Clip sizes as users give them, and the defaults of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import InvalidInputError


@dataclass(frozen=True)
class VideoSize:
    """A clip as users name it: pixel frames and pixel height and width."""

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise InvalidInputError(f"{name}={shown(value)}: give an integer")

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class GenerationDefaults:
    """The settings that the model's diffusers pipeline uses unless the user gives others."""

    size: VideoSize
    steps: int
    guidance_scale: float
    dtype: torch.dtype
    fps: int
