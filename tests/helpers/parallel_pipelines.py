"""Whole tiny pipelines for tests in which several processes make one clip."""

from __future__ import annotations

from typing import Any

from tests.helpers import cogvideox_pipeline, wan_pipeline
from tests.helpers.routed_models import tiny

CALL = {"num_frames": 25, "height": 128, "width": 128, "num_inference_steps": 3, "seed": 3}


def wan(**changes: Any) -> Any:
    """A WanPipeline, whose guidance is two calls of the transformer."""
    _, transformer = tiny("wan2.1-1.3b", num_layers=1, **changes)
    return wan_pipeline.tiny_pipeline(transformer)


def cogvideox() -> Any:
    """A CogVideoXPipeline, whose guidance is a batch of two."""
    model, transformer = tiny("cogvideox-5b", num_layers=1)
    pipe = cogvideox_pipeline.tiny_pipeline(model, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe
