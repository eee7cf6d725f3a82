"""A tiny transformer of every class of the registry, and how `enable` is called for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rainfusion_trt.models import VideoModel, VideoSize, get_model

# One model of each transformer class.
CLASSES = ("wan2.1-1.3b", "cogvideox-5b", "hunyuanvideo", "hunyuanvideo-1.5", "allegro")
SIZE = VideoSize(25, 128, 128)  # 7 x 8 x 8 tokens: enough blocks for sparsity to show


def tiny(name: str, *, seed: int = 0, **changes: Any) -> tuple[VideoModel, nn.Module]:
    """A float32 transformer with seeded random weights; `changes` of its configuration."""
    model = get_model(name)
    config = {**model.config("tiny"), **changes}
    if "sample_frames" in config:
        frames = SIZE.frames if name.startswith("cogvideox") else 7
        config.update(sample_frames=frames, sample_height=16, sample_width=16)
    return model, model.create(config, dtype=torch.float32, seed=seed)


def call_of(
    model: VideoModel, transformer: nn.Module, size: VideoSize = SIZE, *, batch: int = 1
) -> dict[str, Any]:
    """Keyword arguments of one forward."""
    inputs = model.example_inputs(transformer, size, batch=batch)
    return model.forward_kwargs(inputs)


@torch.no_grad()
def run(transformer: nn.Module, call: dict[str, Any]) -> torch.Tensor:
    """The transformer's output."""
    return transformer(**call, return_dict=False)[0]


def attentions(transformer: nn.Module, model: VideoModel) -> dict[str, nn.Module]:
    """Its self-attentions by name."""
    modules = transformer.named_modules()
    return {name: m for name, m in modules if model.is_self_attention(name, m)}
