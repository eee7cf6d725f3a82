"""`enable` and `disable` on tiny transformers, on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError, RainFusionError, UnsupportedError
from rainfusion_trt.models import AttentionLayout, VideoSize, get_model
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.routing import AttentionRoute, RainFusionSettings
from rainfusion_trt.routing import route as route_module

SIZE = VideoSize(25, 128, 128)  # 7 x 8 x 8 tokens: enough blocks for sparsity to show


def make(name: str = "cogvideox-5b", dtype=torch.float32):
    model = get_model(name)
    config = model.config("tiny")
    config.update(sample_frames=SIZE.frames, sample_height=16, sample_width=16)
    transformer = model.create(config, dtype=dtype)
    inputs = model.example_inputs(transformer, SIZE, batch=2)
    call = model.forward_kwargs(inputs)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return transformer(**call, return_dict=False)[0]

    return transformer, forward


@pytest.mark.parametrize("name", ["cogvideox-2b", "cogvideox-5b", "cogvideox1.5-5b"])
def test_zero_sparsity_is_dense_and_half_is_not(name):
    transformer, forward = make(name)
    dense = forward()
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
    # Two float32 softmaxes that sum 464 keys in another order, through two layers.
    torch.testing.assert_close(forward(), dense, atol=2e-5, rtol=0)
    assert routing.routed == 2
    routing.sparsity = 0.5
    sparse = forward()
    assert torch.isfinite(sparse).all()
    assert (sparse - dense).abs().max() > 1e-2
    rainfusion_trt.disable(transformer)
    assert torch.equal(forward(), dense)
    assert "forward" not in transformer.__dict__


def test_operator_gets_layout_settings_and_tensors(monkeypatch):
    transformer, forward = make()
    seen = []
    operator = torch.ops.rainfusion.attention

    def record(*arguments):
        seen.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(torch.ops.rainfusion, "attention", record)
    rainfusion_trt.enable(
        transformer,
        sparsity=0.25,
        method="rainfusion2",
        alpha=0.8,
        sink_frames=2,
        last_sink_frames=3,
        exact_frames=(4, (1, 3)),
        allow_dense=True,  # they are much of a clip this small
    )
    forward()
    assert len(seen) == 2
    for q, k, v, grid, sparsity, kv_len, text, *attributes in seen:
        assert q.shape == k.shape == v.shape == (2, 2, 16 + 7 * 8 * 8, 64)
        assert grid.shape == (7, 8, 8) and text == "first" and kv_len is None
        assert sparsity.dtype is torch.float32 and sparsity.tolist() == [0.25]
        assert attributes == ["rainfusion2", 0.8, 2, 0.0, "16bit", 3, [1, 3, 4, 5]]


def test_eight_bits_are_asked_for_and_recorded():
    transformer, forward = make()
    dense = forward()
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, method="piecewise", precision="8bit")
    rounded = forward()
    # Attention is rounded by .04 and is one of a block's terms; nothing else is rounded.
    error = (rounded - dense).norm() / dense.norm()
    assert 1e-5 < error < 0.04
    assert routing.settings.record()["precision"] == "8bit"
    rainfusion_trt.disable(transformer)
    with pytest.raises(UnsupportedError, match="precision='8bit' has no kernel for the textural"):
        rainfusion_trt.enable(transformer, method="rainfusion", precision="8bit")


def test_sparsity_is_written_in_place():
    """So that a captured CUDA graph reads the new value."""
    transformer, _ = make()
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    tensor = routing._tensor
    routing.sparsity = 0.75
    assert routing._tensor is tensor and tensor.tolist() == [0.75] and routing.sparsity == 0.75
    for value in (1.0, -0.1, float("nan")):
        with pytest.raises(InvalidInputError, match="sparsity="):
            routing.sparsity = value
    assert tensor.tolist() == [0.75]


def test_half_precision_runs():
    transformer, forward = make(dtype=torch.bfloat16)
    rainfusion_trt.enable(transformer, sparsity=0.0)
    assert forward().dtype is torch.bfloat16


def test_positional_arguments_are_understood():
    transformer, forward = make("cogvideox-2b")
    inputs = get_model("cogvideox-2b").example_inputs(transformer, SIZE, batch=2)
    expected = forward()
    rainfusion_trt.enable(transformer, sparsity=0.0)
    with torch.no_grad():
        actual = transformer(*inputs.values()).sample
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)


def test_twice_and_not_at_all():
    transformer, _ = make()
    with pytest.raises(InvalidInputError, match="not on"):
        rainfusion_trt.disable(transformer)
    rainfusion_trt.enable(transformer)
    with pytest.raises(InvalidInputError, match="on already"):
        rainfusion_trt.enable(transformer)
    rainfusion_trt.disable(transformer)
    rainfusion_trt.enable(transformer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"method": "magic"}, "'magic'"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"sink_frames": -1}, "sink_frames=-1"),
        ({"last_sink_frames": -1}, "last_sink_frames=-1"),
        ({"exact_frames": (-1,)}, "exact_frames has -1"),
        ({"model": "sora"}, "'sora'"),
    ],
)
def test_bad_settings_leave_the_transformer_alone(options, message):
    transformer, forward = make()
    before = forward()
    with pytest.raises(InvalidInputError, match=message):
        rainfusion_trt.enable(transformer, **options)
    assert "forward" not in transformer.__dict__
    assert torch.equal(forward(), before)


def test_unknown_class_needs_the_model():
    class Renamed(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, hidden_states, encoder_hidden_states, timestep, image_rotary_emb):
            return self.inner(
                hidden_states, encoder_hidden_states, timestep, image_rotary_emb=image_rotary_emb
            ).sample

    transformer, forward = make()
    expected = forward()
    wrapper = Renamed(transformer)
    with pytest.raises(UnsupportedError, match="Renamed"):
        rainfusion_trt.enable(wrapper)
    routing = rainfusion_trt.enable(wrapper, sparsity=0.0, model="cogvideox-5b")
    model = get_model("cogvideox-5b")
    inputs = model.example_inputs(transformer, SIZE, batch=2)
    with torch.no_grad():
        actual = wrapper(**model.forward_kwargs(inputs))
    assert routing.routed == 2
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)
    with pytest.raises(UnsupportedError, match="call the transformer itself"):
        forward()  # past what RainFusion is on for


def test_forward_without_routed_attention_is_an_error():
    transformer, forward = make()
    rainfusion_trt.enable(transformer, method="rainfusion")
    for block in transformer.transformer_blocks:  # attention by other means
        block.attn1.forward = lambda hidden_states, encoder_hidden_states, **_: (
            hidden_states,
            encoder_hidden_states,
        )
    with pytest.raises(RainFusionError, match=r"transformer_blocks\.0\.attn1"):
        forward()


def test_a_hook_added_later_survives_disable():
    transformer, forward = make()
    dense = forward()
    rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    calls, routed = [], transformer.forward

    def hook(*args, **kwargs):  # as accelerate's offloading hooks do
        calls.append(1)
        return routed(*args, **kwargs)

    transformer.forward = hook
    assert not torch.equal(forward(), dense)
    rainfusion_trt.disable(transformer)
    assert torch.equal(forward(), dense) and len(calls) == 2


def test_a_forward_of_its_own_comes_back():
    transformer, forward = make()
    original = transformer.forward

    def own(*args, **kwargs):
        return original(*args, **kwargs)

    transformer.forward = own
    rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    forward()
    rainfusion_trt.disable(transformer)
    assert transformer.forward is own


# -- the mode on its own ---------------------------------------------------------------------------


def route(text_tokens=5, **layout) -> AttentionRoute:
    place = "last" if text_tokens else "none"
    grid = torch.empty(2, 3, 4)
    return AttentionRoute(
        AttentionLayout(grid, place, text_tokens=text_tokens, **layout),
        torch.zeros(1),
        RainFusionSettings(),
    )


def test_other_attention_is_left_alone():
    """Cross-attention and a refiner over the text run as they did, masks and all."""
    q, text = torch.randn(1, 2, 24, 16), torch.randn(1, 2, 5, 16)
    mask = torch.rand(24, 5) > 0.3
    expected = [
        F.scaled_dot_product_attention(q, text, text, mask),
        F.scaled_dot_product_attention(text, text, text, is_causal=True),
    ]
    with route(text_tokens=0) as mode:
        actual = [
            F.scaled_dot_product_attention(q, text, text, mask),
            F.scaled_dot_product_attention(text, text, text, is_causal=True),
        ]
    assert mode.count == 0
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_both_call_styles_are_taken_and_the_scale_kept():
    q, k, v = torch.randn(3, 1, 2, 29, 16).unbind(0)
    with route() as mode:
        positional = F.scaled_dot_product_attention(q, k, v, None, 0.0, False, scale=0.3)
        named = F.scaled_dot_product_attention(query=q, key=k, value=v, scale=0.3)
    assert mode.count == 2
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(positional, expected)
    torch.testing.assert_close(named, expected)


def test_a_mask_needs_a_length_in_its_place():
    q = torch.randn(1, 2, 29, 16)
    mask = (torch.arange(29) < 26)[None, None, None]
    with pytest.raises(UnsupportedError, match="kv_len"), route():
        F.scaled_dot_product_attention(q, q, q, mask)
    with route(kv_len=torch.tensor([26], dtype=torch.int32)) as mode:
        actual = F.scaled_dot_product_attention(q, q, q, mask)
    assert mode.count == 1
    expected = F.scaled_dot_product_attention(q, q, q, mask)
    torch.testing.assert_close(actual[:, :, :26], expected[:, :, :26])


@pytest.mark.parametrize("options", [{"is_causal": True}, {"dropout_p": 0.1}])
def test_attention_that_rainfusion_has_not(options):
    q = torch.randn(1, 2, 29, 16)
    with pytest.raises(UnsupportedError, match=next(iter(options))), route():
        F.scaled_dot_product_attention(q, q, q, **options)


def test_text_is_the_layouts_and_scale_the_calls(monkeypatch):
    seen = []

    def record(*arguments, **options):
        seen.append((options["text"], options["scale"]))
        return arguments[0]

    monkeypatch.setattr(route_module, "rainfusion_attention", record)
    q = torch.randn(1, 2, 29, 16)
    with route(text_tokens=5):
        F.scaled_dot_product_attention(q, q, q)
        F.scaled_dot_product_attention(q, q, q, scale=0.5)
    assert seen == [("last", 0.0), ("last", 0.5)]


@pytest.mark.parametrize("change", [{"text": "first"}, {"scale": 0.5}])
def test_settings_of_a_model_say_neither(change):
    layout = AttentionLayout(torch.empty(2, 3, 4), "last", text_tokens=5)
    with pytest.raises(InvalidInputError, match="cannot be set for a whole model"):
        AttentionRoute(layout, torch.zeros(1), AttentionSettings(**change))
