"""Tiny LTX transformers and what a call of them gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.models import VideoModel, VideoSize, get_model

NAMES = ("ltx-video-2b", "ltx-video-13b", "ltx-2", "ltx-2.3")
LARGE = VideoSize(49, 256, 256)  # 7 x 8 x 8 tokens: enough blocks for sparsity to show


def tiny(name: str, **changes: Any) -> tuple[VideoModel, nn.Module]:
    """A float32 transformer with seeded random weights; `changes` of its configuration."""
    model = get_model(name)
    return model, model.create({**model.config("tiny"), **changes}, dtype=torch.float32)


def call_of(model: VideoModel, transformer: nn.Module, size: VideoSize, batch: int = 1) -> Any:
    """Keyword arguments of one forward: those of image to video, with the size in tokens."""
    return model.forward_kwargs(model.example_inputs(transformer, size, batch=batch))


@torch.no_grad()
def run(transformer: nn.Module, call: dict[str, Any]) -> tuple[Tensor, ...]:
    """All outputs."""
    return transformer(**call, return_dict=False)


def errors(actual: Any, expected: Any) -> list[float]:
    """Largest difference of each output over its largest value."""
    pairs = zip(actual, expected, strict=True)
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
