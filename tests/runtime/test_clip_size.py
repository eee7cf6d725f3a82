"""Sizes that are asked for: refused before the work, made, or said to be others."""

from __future__ import annotations

import logging

import pytest

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import get_model

pytestmark = pytest.mark.usefixtures("one_thread")
CALL = {"num_frames": 9, "height": 64, "width": 96, "num_inference_steps": 1, "seed": 0}


@pytest.fixture(scope="module")
def pipeline():
    model = get_model("cogvideox1.5-5b")
    with rainfusion_trt.Pipeline(
        model.name, pipe=tiny_pipeline(model), backend="torch", device="cpu", sparsity=0.0
    ) as pipeline:
        yield pipeline


@pytest.mark.parametrize(("side", "pixels"), [("height", 72), ("width", 8), ("height", 1080)])
def test_sides_that_are_no_whole_tokens_are_refused_before_work(
    pipeline, monkeypatch, side, pixels
):
    """Their latents are whole, so that diffusers takes them: 1080 rows are 135 of latents."""
    monkeypatch.setattr(pipeline.pipe, "encode_prompt", lambda **_: pytest.fail("encoded"))
    with pytest.raises(InvalidInputError, match=f"{side}={pixels} must be a multiple of 16"):
        pipeline("a", **{**CALL, side: pixels})


@pytest.mark.parametrize("form", ["np", "pt", "pil"])
def test_frames_that_the_pipeline_rounds_are_said(pipeline, caplog, form):
    with caplog.at_level(logging.WARNING, logger="rainfusion_trt"):
        pipeline("a", **CALL, output_type=form)
        assert "asked for" not in caplog.text
        made = pipeline("a", **{**CALL, "num_frames": 11}, output_type=form)
    assert len(made.frames[0]) == 9
    (line,) = (r.getMessage() for r in caplog.records if "asked for" in r.getMessage())
    assert line == "num_frames=11 was asked for, and CogVideoXPipeline has made 9"


def test_clips_that_the_pipeline_leaves_out_are_said(pipeline, caplog):
    """Diffusers' CogVideoX pipelines set the number to 1, whatever is asked for."""
    with caplog.at_level(logging.WARNING, logger="rainfusion_trt"):
        made = pipeline(["a", "b"], **CALL, num_videos_per_prompt=2)
    assert len(made.frames) == 2
    words = "num_videos_per_prompt=2 was asked for, and CogVideoXPipeline has made 1"
    assert words in caplog.text
