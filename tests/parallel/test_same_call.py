"""What processes of one clip compare before they begin: all that `Pipeline` was told of a call."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt import CacheSettings, Pipeline, PrecisionSchedule
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.parallel.sharing import Alone, digests_of_call
from rainfusion_trt.sigma_schedule import SigmaSchedule

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = VideoSize(frames=37, height=96, width=128)
MADE = {"backend": "torch", "device": "cpu", "sparsity": 0.6, "precision": "8bit"}
CALL = {
    "prompt": "a fox",
    "num_frames": 37,
    "height": 96,
    "width": 128,
    "num_inference_steps": 4,
    "seed": 0,
    "output_type": "latent",
}


class ToldError(Exception):
    """Ends a call before its first step, and says what there was to compare."""

    def __init__(self, digests: dict[str, str]) -> None:
        super().__init__()
        self.digests = digests


class Telling(Alone):
    def prepare(self, *call: Any) -> Any:
        raise ToldError(digests_of_call(*call))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(get_model("cogvideox"), size=SIZE)


def told(pipe: Any, made: dict[str, Any], call: dict[str, Any]) -> dict[str, str]:
    with Pipeline(pipe=pipe, **{**MADE, **made}) as pipeline:
        pipeline._caller = dataclasses.replace(pipeline._caller, sharing=Telling())
        with pytest.raises(ToldError) as ended:
            pipeline(**{**CALL, **call})
    return ended.value.digests


@pytest.fixture(scope="module")
def usual(pipe):
    return told(pipe, {}, {})


@pytest.mark.parametrize(
    ("made", "call", "differ"),
    [
        ({}, {}, set()),
        ({}, {"seed": 1}, set()),  # the first process's goes to all
        ({"sparsity": 0.7}, {}, {"sparsity"}),
        ({"dense_fraction": 0.5}, {}, {"sparsity"}),
        ({"preset": "fast", "sparsity": None}, {}, {"sparsity"}),
        ({"schedule": SigmaSchedule(0.6), "sparsity": None}, {}, {"sparsity"}),
        ({}, {"sparsity": 0.7}, {"sparsity"}),
        ({}, {"schedule": [0.0, 0.6, 0.6, 0.5]}, {"sparsity"}),
        ({}, {"schedule": lambda step, steps: 0.6 if step else 0.0}, set()),  # as by default
        ({}, {"precision": PrecisionSchedule(first=0.3)}, {"precision"}),
        ({"method": "rainfusion2"}, {}, {"attention settings"}),
        ({"alpha": 0.5}, {}, {"attention settings"}),
        ({"sink_frames": 2}, {}, {"attention settings"}),
        ({"dense_layers": (1,)}, {}, {"dense_layers"}),
        ({"cache": "easy"}, {}, {"cache"}),
        ({}, {"cache": CacheSettings("easy", last=2)}, {"cache"}),
        ({}, {"prompt": "an owl"}, {"prompt"}),
        ({}, {"guidance_scale": 2.0}, {"guidance_scale"}),
        ({}, {"attention_kwargs": {"scale": 0.5}}, {"attention_kwargs"}),
        ({}, {"callback_on_step_end": print}, {"callback_on_step_end"}),
    ],
    ids=lambda value: "-".join(map(str, sorted(value))) or "nothing",  # no address of an object
)
def test_what_differs_is_named(pipe, usual, made, call, differ):
    other = told(pipe, made, call)
    names = {*usual, *other}
    assert {name for name in names if usual.get(name) != other.get(name)} == differ


def test_a_setting_of_the_cache_and_a_value_of_a_mapping_count(pipe):
    for first, second in (
        ({"cache": "easy"}, {"cache": "easy", "cache_threshold": 0.01}),
        ({"attention_kwargs": {"scale": 0.5}}, {"attention_kwargs": {"scale": 0.6}}),
        ({"latents": torch.zeros(1)}, {"latents": torch.ones(1)}),
    ):
        one, other = told(pipe, {}, first), told(pipe, {}, second)
        assert {name for name in one if one[name] != other[name]} == {next(iter(first))}


def test_another_transformer_differs(pipe, usual):
    """Of another size or type, whose exchanges would have other lengths; another file is none."""
    before = pipe.transformer
    model = get_model("cogvideox")
    config = dict(before.config)
    try:
        for changes, dtype, differ in (
            ({}, torch.float32, set()),
            ({}, torch.bfloat16, {"transformer"}),
            ({"num_layers": config["num_layers"] + 1}, torch.float32, {"transformer"}),
        ):
            pipe.transformer = model.create({**config, **changes}, dtype=dtype)
            pipe.transformer.register_to_config(_name_or_path="elsewhere")
            other = told(pipe, {}, {})
            assert {name for name in usual if usual[name] != other[name]} == differ
    finally:
        pipe.transformer = before


def test_another_scheduler_differs(pipe, usual):
    before = pipe.scheduler
    pipe.scheduler = type(before).from_config(before.config, timestep_spacing="linspace")
    try:
        other = told(pipe, {}, {})
    finally:
        pipe.scheduler = before
    assert {name for name in usual if usual[name] != other[name]} == {"scheduler"}
