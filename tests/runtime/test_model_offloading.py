"""A whole pipeline whose models take turns on the device, generation after generation."""

from __future__ import annotations

import accelerate
import pytest
import torch

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.routing import routing_of

SIZE = VideoSize(frames=25, height=128, width=128)  # of which some blocks can be left out
CALL = {
    "prompt": "a fox",
    "num_frames": SIZE.frames,
    "height": SIZE.height,
    "width": SIZE.width,
    "num_inference_steps": 2,
    "output_type": "latent",
}


@pytest.fixture
def pipe():
    made = tiny_pipeline(get_model("cogvideox"), size=SIZE)
    made.set_progress_bar_config(disable=True)
    made.enable_model_cpu_offload(device="cpu")
    return made


def check(frames: list[torch.Tensor], dense: torch.Tensor) -> None:
    """Sparse every time: diffusers takes its hooks off after a generation and puts new ones on."""
    assert torch.equal(frames[0], frames[1]) and torch.equal(frames[0], frames[2])
    assert (frames[0] - dense).abs().max() > 1e-3 * dense.abs().max()


def test_enable(pipe):
    def generate() -> torch.Tensor:
        return pipe(**CALL, generator=torch.Generator().manual_seed(0)).frames

    dense = generate()
    routing = rainfusion_trt.enable(pipe.transformer, sparsity=0.7, method="rainfusion")
    frames = []
    for _ in range(3):
        frames.append(generate())
        assert len(routing.report().routed) == 2
    check(frames, dense)


def test_pipeline(pipe):
    with rainfusion_trt.Pipeline(
        pipe=pipe,
        backend="torch",
        device="cpu",
        method="rainfusion",
        sparsity=0.7,
        dense_fraction=0.0,
    ) as pipeline:
        dense = pipeline(**CALL, seed=0, sparsity=0.0).frames
        outputs = [pipeline(**CALL, seed=0) for _ in range(3)]
    assert [out.sparsity for out in outputs] == [(0.7, 0.7)] * 3
    assert all(step.routed == 2 and step.density < 1 for out in outputs for step in out.steps)
    check([out.frames for out in outputs], dense)


@pytest.mark.parametrize("name", ["transformer", "text_encoder"])
def test_sequential_offloading_is_refused_by_name(name):
    """Its weights are on the meta device; without the hooks they are back."""
    pipe = tiny_pipeline(get_model("cogvideox"), size=SIZE)
    pipe.set_progress_bar_config(disable=True)
    accelerate.cpu_offload(getattr(pipe, name), execution_device=torch.device("cpu"))
    call = {"pipe": pipe, "backend": "torch", "device": "cpu", "method": "rainfusion"}
    with pytest.raises(InvalidInputError, match=rf"pipe\.{name} has weights on the meta") as error:
        rainfusion_trt.Pipeline(**call)
    assert "\n" not in str(error.value) and routing_of(pipe.transformer) is None
    pipe.remove_all_hooks()
    with rainfusion_trt.Pipeline(**call) as pipeline:
        assert len(pipeline(**CALL, seed=0).steps) == 2


def test_a_pipeline_that_diffusers_does_not_move(monkeypatch):
    """As one with a device map."""
    pipe = tiny_pipeline(get_model("cogvideox"), size=SIZE)
    monkeypatch.setattr(pipe, "_is_pipeline_device_mapped", lambda: True)
    with pytest.raises(InvalidInputError, match=r"cannot be moved to cpu: .*reset_device_map"):
        rainfusion_trt.Pipeline(pipe=pipe, backend="torch", device="cpu")
    assert routing_of(pipe.transformer) is None
