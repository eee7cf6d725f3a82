"""Tokens of text that pipelines make, against those that a graph takes."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest
import torch

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import get_model
from rainfusion_trt.runtime.base import TensorInfo
from rainfusion_trt.runtime.text_length import fit_text, text_bounds


def transformer(name: str, low: int | None, high: int | None) -> SimpleNamespace:
    """An exported one that takes so many tokens of text."""
    model = get_model(name)
    info = TensorInfo("encoder_hidden_states", torch.float32, (1, low, 8), (2, high, 8))
    backend = SimpleNamespace(inputs={info.name: info})
    return SimpleNamespace(backend=backend, config=model.config())


def arguments_of(name: str, kind: str, low: int, high: int, **arguments: object) -> dict:
    model, graph = get_model(name), transformer(name, low, high)
    pipe = object.__new__(type(kind, (getattr(diffusers, kind),), {}))
    object.__setattr__(pipe, "transformer", graph)
    given = dict(arguments)
    fit_text(model, pipe, text_bounds(model, [graph]), given)
    return given


@pytest.mark.parametrize(
    ("name", "kind", "bounds", "length"),
    [
        ("ltx-video-2b", "LTXConditionPipeline", (128, 128), 128),  # its own is 256
        ("ltx-video-2b", "LTXPipeline", (128, 128), None),
        ("ltx-video-2b", "LTXConditionPipeline", (128, 256), None),
        ("ltx-video-2b", "LTXPipeline", (160, 256), 160),
        ("wan2.1-1.3b", "WanPipeline", (64, 64), 64),
        # The argument counts the prompt alone, without the image.
        ("hunyuanvideo-i2v", "HunyuanVideoImageToVideoPipeline", (396, 396), None),
    ],
)
def test_prompts_are_as_long_as_the_graph_takes(name, kind, bounds, length):
    wanted = {} if length is None else {"max_sequence_length": length}
    assert arguments_of(name, kind, *bounds) == wanted


def test_another_length_is_refused():
    call = ("ltx-video-2b", "LTXConditionPipeline")
    with pytest.raises(InvalidInputError, match="max_sequence_length=256: .* for 128 tokens"):
        arguments_of(*call, 128, 128, max_sequence_length=256)
    with pytest.raises(InvalidInputError, match="for 64 to 128 tokens"):
        arguments_of(*call, 64, 128, max_sequence_length=256)
    kept = arguments_of(*call, 64, 128, max_sequence_length=100)
    assert kept == {"max_sequence_length": 100}


def test_bounds_are_those_of_all_transformers():
    model = get_model("wan2.2-a14b")
    parts = [transformer(model.name, 128, 512), transformer(model.name, 256, None)]
    assert text_bounds(model, parts) == (256, 512)
    assert text_bounds(model, [transformer(model.name, None, None)]) == (None, None)


def test_negative_prompts_of_another_length():
    """Diffusers gives them every second token of the image, and prompts every fourth."""
    asked = {"true_cfg_scale": 4.0, "negative_prompt": "blurry"}
    replace, concat = get_model("hunyuanvideo-i2v"), get_model("hunyuanvideo-i2v-33ch")
    with pytest.raises(
        UnsupportedError, match="540 tokens of text of it, and this graph takes 396"
    ):
        replace.check_call(asked, text_tokens=(396, 396))
    replace.check_call(asked, text_tokens=(396, 540))
    replace.check_call(asked, text_tokens=(None, None))
    replace.check_call({**asked, "true_cfg_scale": 1.0}, text_tokens=(396, 396))
    replace.check_call({"true_cfg_scale": 4.0}, text_tokens=(396, 396))
    embeds = {"true_cfg_scale": 4.0, "negative_prompt_embeds": torch.zeros(1)}
    replace.check_call(embeds, text_tokens=(396, 396))
    concat.check_call(asked, text_tokens=(540, 540))
    get_model("hunyuanvideo").check_call(asked, text_tokens=(256, 256))
