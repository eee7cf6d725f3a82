"""A clip of exactly as many tokens as its text, whose cross-attention has the same lengths."""

from __future__ import annotations

import pytest
import torch

import rainfusion_trt
from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.export.capture import attention_count, capture
from rainfusion_trt.export.source import source_of_model
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.operator.settings import AttentionSettings

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = get_model("wan2.1-1.3b")
SIZE = VideoSize(29, 128, 128)  # 8 x 8 x 8 tokens, and 512 of text
OTHER = VideoSize(13, 128, 128)


@pytest.fixture(scope="module")
def transformer():
    return MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32)


def test_an_export_takes_self_attention_alone(transformer):
    source = source_of_model(MODEL, transformer, SIZE)
    sparsity = torch.zeros(1)
    program = capture(source, sparsity, AttentionSettings())
    assert attention_count(program) == MODEL.attention_count(transformer.config) == 1
    inputs = MODEL.example_inputs(transformer, SIZE, batch=1, seed=1)
    (found,) = program.module()(inputs, sparsity)
    (wanted,) = MODEL.eager(transformer, MODEL.forward_kwargs(inputs))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_enable_takes_self_attention_alone(transformer):
    inputs = MODEL.example_inputs(transformer, SIZE, batch=1)
    call = MODEL.forward_kwargs(inputs)
    with torch.no_grad():
        (wanted,) = MODEL.eager(transformer, call)
        routing = rainfusion_trt.enable(transformer, sparsity=0.0)
        try:
            (found,) = MODEL.eager(transformer, call)
            assert len(routing.report().routed) == 1
            routing.sparsity = 0.8
            assert (MODEL.eager(transformer, call)[0] - wanted).abs().max() > 1e-3
        finally:
            rainfusion_trt.disable(transformer)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_what_only_tokens_tell_is_refused(transformer):
    """Of a module without attention modules of diffusers."""
    call = MODEL.forward_kwargs(MODEL.example_inputs(transformer, SIZE, batch=1))
    layout = MODEL.layout(transformer, call)
    with pytest.raises(UnsupportedError, match="a clip of 512 tokens is as long as the text"):
        MODEL.check_lengths(layout, call)
    other = MODEL.forward_kwargs(MODEL.example_inputs(transformer, OTHER, batch=1))
    MODEL.check_lengths(MODEL.layout(transformer, other), other)
