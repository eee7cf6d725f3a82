"""Clips as users name them, and what a pipeline makes when the user says nothing."""

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
    """What the model's diffusers pipeline uses when the user says nothing."""

    size: VideoSize
    steps: int
    guidance_scale: float
    dtype: torch.dtype
    fps: int
