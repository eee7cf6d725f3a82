"""Values of other types than arguments have: one line, before the transformer runs for them."""

from __future__ import annotations

import functools

import pytest
import torch

import rainfusion_trt
from helpers.parallel_pipelines import CALL, wan
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import VideoSize

pytestmark = pytest.mark.usefixtures("one_thread")
Pipeline = functools.partial(rainfusion_trt.Pipeline, backend="torch", device="cpu", sparsity=0.0)


@pytest.fixture(scope="module")
def pipe():
    return wan()


@pytest.fixture(scope="module")
def pipeline(pipe):
    with Pipeline(pipe=pipe) as made:
        yield made


@pytest.mark.parametrize(
    "given",
    [
        {"parallel": 2},
        {"model": 5},
        {"engine": 5},
        {"onnx": ["a.onnx"]},
        {"engine": {"transformer": 5}},
        {"transformer": 5},
        {"dtype": "fp16"},
        {"dense_layers": 0},  # which is not nothing
        {"dense_layers": "01"},
    ],
    ids=str,
)
def test_of_a_pipeline(given):
    pipe = wan()
    (name,) = given
    with pytest.raises(InvalidInputError, match=name) as error:
        Pipeline(pipe=pipe, **given)
    assert "\n" not in str(error.value)
    with Pipeline(pipe=pipe):  # nothing of the refused one is left
        pass


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": []},
        {"prompt": ["a", 5]},
        {"negative_prompt": [5]},
        {"prompt": "a fox\udcfc"},  # of an argument in Latin-1
        {"negative_prompt": ["a", "\ud800"]},
        {"generator": 5},
        {"generator": []},
        {"latents": 5},
        {"output_type": "mp3"},
        {"output_type": ["np"]},
        {"callback_on_step_end": 5},
        {"progress": 5},
        {"cancel": True},
    ],
    ids=ascii,
)
def test_of_a_call(pipeline, given):
    def ran(*_):
        pytest.fail("the transformer ran")

    (name,) = given
    hook = pipeline.pipe.transformer.register_forward_pre_hook(ran)
    arguments = CALL if name != "generator" else {**CALL, "seed": None}
    try:
        with pytest.raises(InvalidInputError, match=name) as error:
            pipeline(**{"prompt": "a", **arguments, **given})
    finally:
        hook.remove()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": ["a", "b"], "negative_prompt": ["c"]},
        {"prompt": "a", "negative_prompt": ["c"]},
        {"prompt": "a", "generator": 2},
        {"prompt": ["a", "b"], "generator": 3},
        {"prompt": ["a", "b"], "num_videos_per_prompt": 2, "generator": 2},
    ],
    ids=str,
)
def test_lists_of_another_length_than_the_clips(pipeline, monkeypatch, given):
    """Before the text is encoded; some pipelines would take the first of them for all."""
    monkeypatch.setattr(pipeline.pipe, "encode_prompt", lambda **_: pytest.fail("encoded"))
    arguments = {**CALL, "seed": None, **given}
    if "generator" in given:
        arguments["generator"] = [torch.Generator() for _ in range(given["generator"])]
    with pytest.raises(InvalidInputError, match="is a list of . for") as error:
        pipeline(**arguments)
    assert "\n" not in str(error.value)


def test_a_callback_that_returns_nothing(pipeline):
    with pytest.raises(InvalidInputError, match="callback_on_step_end returned None: return"):
        pipeline("a", callback_on_step_end=lambda *_: None, **CALL)


@pytest.mark.parametrize("kind", [list, tuple])
def test_generators_are_taken_as_before(pipeline, kind):
    arguments = {**CALL, "seed": None, "num_inference_steps": 1, "output_type": "latent"}
    generators = kind(torch.Generator().manual_seed(i) for i in (1, 2))
    made = pipeline(["a", "b"], generator=generators, guidance_scale=1.0, **arguments)
    assert made.frames.shape[0] == 2


@pytest.mark.parametrize("value", ["9", 9.0, True, None])
def test_of_a_size(value):
    with pytest.raises(InvalidInputError, match="frames="):
        VideoSize(value, 128, 128)


def test_of_enable():
    transformer = wan().transformer
    for name, value in (("sparsity", "0.5"), ("dense_layers", 5), ("model", 5)):
        with pytest.raises(InvalidInputError, match=name):
            rainfusion_trt.enable(transformer, **{name: value})
    rainfusion_trt.disable(rainfusion_trt.enable(transformer) and transformer)  # it was not on
