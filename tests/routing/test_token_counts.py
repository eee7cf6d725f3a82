"""A transformer said to be a model whose tokens it does not have: refused, with the counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import rainfusion_trt
from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.models import VideoSize, get_model
from tests.helpers.packed_model import Packed, PackedTransformer
from tests.helpers.routed_models import call_of, run, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def refusal(transformer, call, model) -> str:
    """The one line, before which nothing was computed."""
    calls = []
    hook = next(transformer.children()).register_forward_hook(lambda *_: calls.append(1))
    rainfusion_trt.enable(transformer, sparsity=0.0, model=model)
    with pytest.raises(RainFusionError) as error:
        run(transformer, call)
    rainfusion_trt.disable(transformer)
    hook.remove()
    assert "\n" not in str(error.value)
    return f"{len(calls)} {error.value}"


def test_latents_of_other_axes():
    """CogVideoX has its frames before its channels: 16 of them are no frames."""
    _, transformer = tiny("cogvideox-5b", num_layers=1)
    call = call_of(get_model("cogvideox-5b"), transformer)
    tokens = 7 * 8 * 8 + call["encoder_hidden_states"].shape[1]
    words = refusal(transformer, call, "wan2.1-1.3b")
    assert f"attends from {tokens} to {tokens} tokens" in words
    assert "a clip of (16, 8, 8) tokens with 0 of text has 1024" in words


def test_latents_of_fewer_axes():
    """Rows of a packed sequence in the place of [B, C, T, H, W]."""
    model = get_model("minimax-h3")
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    call = call_of(model, transformer, VideoSize(22, 256, 256))
    words = refusal(transformer, call, "wan2.1-1.3b")
    assert words.startswith("0 wan2.1-1.3b: hidden_states has shape (1, 448, 96)")
    assert "[batch, in_channels, frames, height, width]" in words


def test_a_call_without_what_tells_the_tokens():
    _, transformer = tiny("wan2.1-1.3b", num_layers=1)
    words = refusal(transformer, call_of(get_model("wan2.1-1.3b"), transformer), "minimax-h3")
    assert words.startswith("0 minimax-h3 is told its tokens by 'position_ids', which this call of")


def test_attention_that_is_found_by_its_tokens():
    transformer, model = PackedTransformer(), Packed()
    call = model.forward_kwargs(model.example_inputs(transformer, model.defaults.size, batch=1))
    rainfusion_trt.enable(transformer, sparsity=0.5, model=model, method="rainfusion")

    def forward(*_args, **_kwargs):
        return (F.scaled_dot_product_attention(*[torch.ones(1, 1, 7, 8)] * 3),)

    transformer.forward = forward
    with pytest.raises(
        RainFusionError, match=r"with the 48 tokens of packed; .* 7 x 7 \(1 times\)"
    ):
        run(transformer, call)
