"""Every model's statements about its graph's inputs, and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import VideoSize, component_names, get_model, model_names
from rainfusion_trt.models.inputs import CLIP_AXES, GraphInput

# Per model, as version 0.1 made them from diffusers' transformers and the real exporter: shapes and
# dtypes of the example inputs at the tiny size with batch 2 and at the standard size with the
# pipeline's batch, the dynamic axes, and the dimensions in a file that was exported with them. But
# CogVideoX's timestep, an integer then, is float32, since schedulers have fractions.
GOLDEN = json.loads((Path(__file__).parent / "graph_inputs_0_1.json").read_text())


@pytest.fixture(params=model_names())
def model(request):
    return get_model(request.param)


def declared(model, kind: str, size: VideoSize, batch: int) -> dict[str, list]:
    """Shapes and dtypes by arithmetic on the model's own configuration."""
    config = model.config(kind)
    extents = model.extents(config, size, batch)
    return {
        given.name: [list(given.shape(extents, config)), str(given.dtype or torch.float32)]
        for given in model.inputs
    }


@pytest.mark.parametrize("name", list(GOLDEN))
def test_shapes_are_those_of_version_0_1(name):
    model, golden = get_model(name), GOLDEN[name]
    assert declared(model, "tiny", model.tiny_size, 2) == golden["tiny"]
    batch = 2 if model.guidance_batch else 1
    assert declared(model, "full", model.defaults.size, batch) == golden["full"]
    assert list(golden["tiny"]) == [given.name for given in model.inputs]


@pytest.mark.parametrize("name", list(GOLDEN))
def test_dynamic_axes_are_those_of_version_0_1(name):
    axes = get_model(name).dynamic_axes()
    golden = GOLDEN[name]["axes"]
    assert axes == {key: {int(i): a for i, a in value.items()} for key, value in golden.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_examples_are_what_was_stated(model, dtype):
    config = model.config("tiny")
    inputs = model.drawn_inputs(config, model.tiny_size, batch=3, dtype=dtype, seed=1)
    extents = model.extents(config, model.tiny_size, 3)
    for given in model.inputs:
        assert inputs[given.name].shape == given.shape(extents, config)
        assert inputs[given.name].dtype == (given.dtype or dtype)
    again = model.drawn_inputs(config, model.tiny_size, batch=3, dtype=dtype, seed=1)
    other = model.drawn_inputs(config, model.tiny_size, batch=3, dtype=dtype, seed=2)
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    assert not torch.equal(inputs["hidden_states"], other["hidden_states"])


def test_names_of_axes_have_one_meaning(model):
    """A name is an axis of the clip, a sequence, or a key of both configurations."""
    named = {axis for given in model.inputs for axis in given.axes if isinstance(axis, str)}
    keys = named - {*CLIP_AXES, *model.sequences}
    for kind in ("full", "tiny"):
        config = model.config(kind)
        assert keys <= set(config) and not {*CLIP_AXES, *model.sequences} & set(config)
    assert set(model.sequences) <= named
    assert not set(model.refused) & {given.name for given in model.inputs}


def test_a_key_that_a_configuration_lacks_is_named():
    given = GraphInput("text", ("batch", "text_dim"))
    assert given.shape({"batch": 2}, {"text_dim": 32}) == (2, 32)
    for config in ({}, {"text_dim": None}):
        with pytest.raises(InvalidInputError, match="text_dim=None"):
            given.shape({"batch": 2}, config)
    model = get_model("cogvideox-5b")
    with pytest.raises(InvalidInputError, match="max_text_seq_length=None"):
        model.extents({}, model.tiny_size, 1)


def test_components_are_the_models():
    assert component_names() == ("transformer", "transformer_2")
    for name in model_names():
        components = get_model(name).components
        assert components == component_names()[: len(components)]
    assert get_model("wan2.2-a14b").components == component_names()
