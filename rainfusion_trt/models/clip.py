"""Clip sizes as users give them, and the defaults of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class VideoSize:
    """A clip as users name it: pixel frames and pixel height and width."""

    frames: int
    height: int
    width: int

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
