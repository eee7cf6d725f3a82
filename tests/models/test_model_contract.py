"""Checks that every model of the registry inherits: clip sizes and checkpoints."""

from __future__ import annotations

import inspect

import pytest
import torch

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model, model_names


@pytest.fixture(params=model_names())
def model(request):
    return get_model(request.param)


def test_a_checkpoint_of_another_model_is_described(model, tmp_path, monkeypatch):
    """By settings that its class really has, and with what to do."""
    model.create(model.config("tiny"), dtype=torch.float32).save_pretrained(tmp_path)
    assert model.matches(model.load(str(tmp_path), dtype=torch.float32))
    known = inspect.signature(model.diffusers_class().__init__).parameters
    assert model.distinctive and set(model.distinctive) <= set(known)
    monkeypatch.setattr(type(model), "_has_config", lambda *_: False)
    with pytest.raises(UnsupportedError, match=f"is not {model.name}: ") as refusal:
        model.load(str(tmp_path), dtype=torch.float32)
    for words in (*(f"{key}=" for key in model.distinctive), model.remedy):
        assert words in str(refusal.value)


@pytest.mark.parametrize("name", ["frames", "height", "width"])
def test_a_size_that_does_not_exist_is_named_with_one_that_does(model, name):
    usual = model.defaults.size
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    for value in (0, -1) if name == "frames" else (0, getattr(usual, name) + 1):
        size = VideoSize(**{**vars(usual), name: value})
        with pytest.raises(InvalidInputError, match=f"{name}={value} must be .*{model.name}") as e:
            model.example_inputs(transformer, size, batch=1)
        assert str(e.value).endswith(f"such as {getattr(usual, name)}")


def test_the_tiny_clip_is_patched_without_rest(model):
    frames, height, width = model._latent_size(model.tiny_size)
    assert frames % model.patch_frames == 0
    assert height % model.patch_pixels == width % model.patch_pixels == 0
