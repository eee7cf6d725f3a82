"""A `Pipeline` whose diffusers pipeline no longer calls what it was made for says so."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.routing import routing_of

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = VideoSize(frames=37, height=64, width=64)
CALL = {"num_frames": 37, "height": 64, "width": 64, "num_inference_steps": 2, "seed": 0}
Pipeline = functools.partial(
    rainfusion_trt.Pipeline, backend="torch", device="cpu", method="rainfusion"
)


class Wrapped(nn.Module):
    """What others put around a transformer: its call is that of the module inside."""

    def __init__(self, inside: Any) -> None:
        super().__init__()
        self.inside = inside

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inside"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs)


@pytest.fixture
def pipe():
    made = tiny_pipeline(get_model("cogvideox"), size=SIZE)
    made.set_progress_bar_config(disable=True)
    return made


def test_another_transformer_is_refused_before_work_and_kept(pipe):
    before = pipe.transformer
    other = get_model("cogvideox").create(dict(before.config), dtype=torch.float32, seed=1)
    with Pipeline(pipe=pipe) as pipeline:
        pipe.transformer = other
        with pytest.raises(InvalidInputError, match="transformer is another CogVideoX.*close"):
            pipeline("a fox", **CALL)
        pipe.transformer = before
        assert len(pipeline("a fox", **CALL, output_type="latent").steps) == 2
        pipe.transformer = other
    assert pipe.transformer is other and routing_of(before) is None


def test_what_is_put_around_it_is_none(pipe):
    with Pipeline(pipe=pipe) as pipeline:
        usual = pipeline("a fox", **CALL, output_type="latent")
        pipe.transformer = Wrapped(pipe.transformer)
        wrapped = pipeline("a fox", **CALL, output_type="latent")
    assert torch.equal(usual.frames, wrapped.frames) and wrapped.sparsity == usual.sparsity


def test_a_pipeline_that_calls_something_else(pipe):
    """As one that calls a method of the transformer: here another module, behind our back."""
    other = get_model("cogvideox").create(dict(pipe.transformer.config), dtype=torch.float32)

    class Around(Wrapped):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return other(*args, **kwargs)

    with Pipeline(pipe=pipe) as pipeline:
        pipe.transformer = Around(pipe.transformer)
        with pytest.raises(UnsupportedError, match="did not call its transformer as a module"):
            pipeline("a fox", **CALL, output_type="latent")
