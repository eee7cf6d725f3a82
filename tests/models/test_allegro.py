"""Allegro and OpenSoraPlan: configuration and routing, on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import AllegroTransformer3DModel

import rainfusion_trt
from helpers.allegro_models import ALLEGRO, NAMES, OPENSORA, call_of, forward, tiny
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model, model_of
from rainfusion_trt.operator import ops  # noqa: F401  (registers torch.ops.rainfusion)

SIZE = VideoSize(25, 128, 128)  # 7 x 8 x 8 tokens: enough blocks for sparsity to show


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "frames"), [("allegro", 22), ("opensoraplan-1.2", 24)])
def test_full_size_is_the_published_one(name, frames):
    model = get_model(name)
    with torch.device("meta"):
        transformer = AllegroTransformer3DModel(**model.config())
    assert sum(p.numel() for p in transformer.parameters()) == 2_771_907_856
    assert len(transformer.state_dict()) == 687
    assert model.attention_count(transformer.config) == 32
    assert model_of(transformer) is model
    assert transformer.config.sample_frames == frames


def test_the_rotary_scales_tell_the_models_apart():
    config = {**OPENSORA.config("tiny", layers=1)}
    for scales, model in (((2.2, 2.0, 2.0), ALLEGRO), ((1.0, 1.0, 1.0), OPENSORA)):
        named = {f"interpolation_scale_{a}": s for a, s in zip("thw", scales, strict=True)}
        assert model_of(AllegroTransformer3DModel(**{**config, **named})) is model
    for change in ({"interpolation_scale_t": None}, {"patch_size_t": 2}):
        with pytest.raises(UnsupportedError, match="AllegroTransformer3DModel"):
            model_of(AllegroTransformer3DModel(**{**config, **change}))


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("allegro", (88, 720, 1280), (22, 45, 80)),
        ("opensoraplan-1.2", (93, 720, 1280), (24, 45, 80)),
        ("opensoraplan-1.2", (93, 480, 640), (24, 30, 40)),
        ("opensoraplan-1.2", (29, 480, 640), (8, 30, 40)),
    ],
)
def test_grid_and_inputs_at_the_standard_sizes(name, size, grid):
    model = get_model(name)
    with torch.device("meta"):
        transformer = AllegroTransformer3DModel(**model.config("tiny", layers=1))
    inputs = model.example_inputs(transformer, VideoSize(*size), batch=1)
    layout = model.layout(transformer, inputs)
    assert tuple(layout.grid.shape) == grid
    assert (layout.text, layout.text_tokens, layout.kv_len) == ("none", 0, None)
    tokens = grid[0] * grid[1] * grid[2]
    assert inputs["rotary_cos"].shape == inputs["rotary_sin"].shape == (tokens, 96)
    assert inputs["encoder_hidden_states"].shape[1] == 512


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((0, 64, 64), "frames=0"),
        ((9, 72, 64), "height=72 must be a multiple of 16"),
        ((9, 64, 0), "width=0"),
    ],
)
def test_sizes_that_do_not_exist(size, message):
    transformer = tiny()
    with pytest.raises(InvalidInputError, match=message):
        OPENSORA.example_inputs(transformer, VideoSize(*size), batch=1)


@pytest.mark.parametrize("layers", [0, 33])
def test_depth_must_exist(layers):
    with pytest.raises(InvalidInputError, match=f"layers={layers} must be between 1 and 32"):
        OPENSORA.config("full", layers=layers)


def test_activations_stay_sane_through_32_layers():
    config = {**OPENSORA.config("tiny"), "num_layers": 32}
    transformer = OPENSORA.create(config, dtype=torch.float16)
    largest = []
    for block in transformer.transformer_blocks:
        block.register_forward_hook(lambda _m, _i, out: largest.append(out.abs().max()))
    sample = forward(transformer, call_of(OPENSORA, transformer, VideoSize(5, 48, 64), batch=1))
    assert len(largest) == 32 and max(largest) < 1000  # float16 ends at 65504
    assert 0.5 < sample.float().std() < 2.0


# -- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_zero_sparsity_is_dense_and_half_is_not(name):
    model = get_model(name)
    transformer = tiny(model)
    call = call_of(model, transformer, SIZE)
    dense = forward(transformer, call)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
    # Two float32 softmaxes that sum 448 keys in another order, through two layers.
    torch.testing.assert_close(forward(transformer, call), dense, atol=2e-5, rtol=0)
    assert routing.routed == 2 and routing.model is model
    routing.sparsity = 0.5
    sparse = forward(transformer, call)
    assert torch.isfinite(sparse).all() and (sparse - dense).abs().max() > 1e-2
    rainfusion_trt.disable(transformer)
    assert torch.equal(forward(transformer, call), dense)


def test_cross_attention_is_left_alone():
    """The operator gets the video alone; the dense calls left are those with the text's mask."""
    transformer = tiny()
    call = call_of(OPENSORA, transformer, SIZE)
    routed, dense = [], []
    operator = torch.ops.rainfusion.attention

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.scaled_dot_product_attention:
                (query, key), mask = args[:2], kwargs["attn_mask"]  # as diffusers calls it
                dense.append((query.shape[2], key.shape[2], tuple(mask.shape)))
            elif func is operator:
                routed.append(args)
            return func(*args, **(kwargs or {}))

    rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    with Watch():
        forward(transformer, call)
    for query, key, _, grid, _, kv_len, text, *_ in routed:
        assert query.shape[2] == key.shape[2] == 448
        assert grid.shape == (7, 8, 8) and text == "none" and kv_len is None
    assert len(routed) == 2
    assert dense == [(448, 512, (2, 2, 1, 512))] * 2


def test_a_clip_as_long_as_the_text():
    """8 x 8 x 8 video tokens and 512 of text: modules tell what lengths do not."""
    transformer = tiny()
    call = call_of(OPENSORA, transformer, VideoSize(29, 128, 128), batch=1)
    dense = forward(transformer, call)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
    torch.testing.assert_close(forward(transformer, call), dense, rtol=1e-4, atol=1e-5)
    assert routing.routed == len(routing.sites) == 2
    routing.sparsity = 0.5
    assert not torch.allclose(forward(transformer, call), dense, rtol=1e-4, atol=1e-5)


# -- checkpoints -----------------------------------------------------------------------------------


def test_load_tells_allegro_from_opensoraplan(tmp_path):
    tiny(seed=4).save_pretrained(tmp_path)
    loaded = OPENSORA.load(str(tmp_path), dtype=torch.float16)
    assert loaded.dtype is torch.float16 and not loaded.training
    with pytest.raises(UnsupportedError, match=r"not allegro.*\(1.0, 1.5, 2.0\)"):
        ALLEGRO.load(str(tmp_path), dtype=torch.float16)
