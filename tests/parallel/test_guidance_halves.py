"""Halves of a call's batch, against the whole, in one process."""

from __future__ import annotations

import pytest
import torch

from rainfusion_trt.models import get_model
from rainfusion_trt.parallel.guidance import half

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["wan2.1-flf2v-14b", "wan2.1-vace-1.3b", "cogvideox-5b"])
def test_halves_of_a_batch_are_the_whole(name):
    """Two images are two rows of a clip; VACE's two scales are of layers, not of the batch."""
    model = get_model(name)
    transformer = model.create(model.config("tiny"), dtype=torch.float32)
    inputs = model.example_inputs(transformer, model.tiny_size, batch=2)
    if "control_hidden_states_scale" in inputs:
        inputs["control_hidden_states_scale"] = torch.tensor([0.5, 2.0])
    call = model.forward_kwargs(inputs)
    with torch.no_grad():
        (whole,) = model.eager(transformer, call)
        parts = []
        for which in range(2):
            mine = {n: half(model, n, v, 2, which) for n, v in call.items()}
            assert mine["hidden_states"].shape[0] == 1
            parts.append(model.eager(transformer, mine)[0])
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
