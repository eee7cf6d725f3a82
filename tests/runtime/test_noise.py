"""Noise that a scheduler draws without a generator follows the seed of a call."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchLCMScheduler

from rainfusion_trt import Pipeline
from rainfusion_trt.runtime.noise import drawn_by_seed
from tests.helpers.parallel_pipelines import CALL, wan

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def test_one_seed_is_one_clip():
    pipe = wan()
    pipe.scheduler = FlowMatchLCMScheduler(shift=3.0)
    call = {**CALL, "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
    with Pipeline(pipe=pipe, backend="torch", device="cpu", sparsity=0.0) as pipeline:
        clips = [pipeline("a fox", **{**call, "seed": seed}).frames for seed in (3, 3, 4)]
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])


def test_the_default_generator_goes_on_as_before():
    torch.manual_seed(7)
    wanted = torch.randn(4)
    torch.manual_seed(7)
    with pytest.raises(KeyError), drawn_by_seed(3, CPU):
        torch.randn(4)
        raise KeyError
    assert torch.equal(torch.randn(4), wanted)
    with drawn_by_seed(None, CPU):
        torch.manual_seed(7)
    assert torch.equal(torch.randn(4), wanted)


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1])
def test_it_is_not_the_noise_of_the_start_once_more(seed):
    start = torch.randn(4, generator=torch.Generator("cpu").manual_seed(seed))
    with drawn_by_seed(seed, CPU):
        assert not torch.equal(torch.randn(4), start)
