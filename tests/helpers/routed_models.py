"""A tiny transformer of every class of the registry, and how `enable` is called for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rainfusion_trt.models import VideoModel, VideoSize, get_model

# One model of each transformer class that is tested everywhere.
CLASSES = ("wan2.1-1.3b", "cogvideox-5b", "hunyuanvideo", "hunyuanvideo-1.5", "allegro")
_OTHERS = (
    "ltx-video-2b",
    "ltx-2",
    "wan2.1-vace-1.3b",
    "wan2.2-animate-14b",
    "skyreels-v2-14b",
    "cosmos-predict2.5-2b",
    "kandinsky5-lite",
    "minimax-h3",
)
ALL_CLASSES = (*CLASSES, *(pytest.param(name, marks=pytest.mark.rehearsal) for name in _OTHERS))
"""Of every class, most of them by hand: they take another 3 minutes."""
SIZE = VideoSize(25, 128, 128)  # 7 x 8 x 8 tokens: enough blocks for sparsity to show
# Of models that make less of as many pixels, or no such clip.
_OTHER_SIZES = {
    "ltx-video-2b": VideoSize(49, 256, 256),
    "ltx-2": VideoSize(49, 256, 256),
    "minimax-h3": VideoSize(22, 256, 256),
}
# Of a float32 output of size 5. Kandinsky rounds q and k to bfloat16, where a last bit of float32
# can become one of bfloat16.
_ROUNDING = {"kandinsky5-lite": 4e-4}


def tiny(name: str, *, seed: int = 0, **changes: Any) -> tuple[VideoModel, nn.Module]:
    """A float32 transformer with seeded random weights; `changes` of its configuration."""
    model = get_model(name)
    config = {**model.config("tiny"), **changes}
    if "sample_frames" in config:
        frames = SIZE.frames if name.startswith("cogvideox") else 7
        config.update(sample_frames=frames, sample_height=16, sample_width=16)
    return model, model.create(config, dtype=torch.float32, seed=seed)


def call_of(
    model: VideoModel, transformer: nn.Module, size: VideoSize | None = None, *, batch: int = 1
) -> dict[str, Any]:
    """Keyword arguments of one forward, of `SIZE` or about as many tokens."""
    size = _OTHER_SIZES.get(model.name, SIZE) if size is None else size
    inputs = model.example_inputs(transformer, size, batch=batch)
    return model.forward_kwargs(inputs)


@torch.no_grad()
def run(transformer: nn.Module, call: dict[str, Any]) -> torch.Tensor:
    """The transformer's output."""
    return transformer(**call, return_dict=False)[0]


def assert_same(name: str, actual: torch.Tensor, wanted: torch.Tensor) -> None:
    """Two outputs of one model differ by roundings of float32 alone."""
    torch.testing.assert_close(actual, wanted, atol=_ROUNDING.get(name, 2e-5), rtol=0)


def attentions(transformer: nn.Module, model: VideoModel) -> dict[str, nn.Module]:
    """Its self-attentions by name."""
    modules = transformer.named_modules()
    return {name: m for name, m in modules if model.is_self_attention(name, m)}
