"""Wan in the registry, under `enable` and in `Pipeline`, as tiny models on the CPU."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers import WanTransformer3DModel

import rainfusion_trt
from helpers.wan_pipeline import tiny_pipeline
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model, model_of

pytestmark = pytest.mark.usefixtures("one_thread")
Pipeline = functools.partial(rainfusion_trt.Pipeline, device="cpu")  # also beside a GPU

PARAMETERS = {  # published
    "wan2.1-1.3b": 1_418_996_800,
    "wan2.1-14b": 14_288_491_584,
    "wan2.2-ti2v-5b": 4_999_787_712,
}
GRIDS = {  # (T, H, W) at the standard sizes
    "wan2.1-1.3b": (21, 30, 52),
    "wan2.1-14b": (21, 45, 80),
    "wan2.2-ti2v-5b": (31, 22, 40),
}
NAMES = list(PARAMETERS)


def tiny(name: str, dtype: torch.dtype = torch.float32, **changes):
    model = get_model(name)
    return model, model.create({**model.config("tiny"), **changes}, dtype=dtype)


def square(name: str) -> VideoSize:
    """7 x 8 x 8 tokens: enough blocks for sparsity to show."""
    pixels = get_model(name).vae_pixels * 16
    return VideoSize(25, pixels, pixels)


@torch.no_grad()
def forward(model, transformer, inputs) -> torch.Tensor:
    return transformer(**model.forward_kwargs(inputs), return_dict=False)[0]


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_full_size_is_the_published_one(name):
    model = get_model(name)
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**model.config())
        latent = torch.empty(
            1, model.config()["in_channels"], *model._latent_size(model.defaults.size)
        )
        text = torch.empty(1, 512, 4096)
    assert sum(p.numel() for p in transformer.parameters()) == PARAMETERS[name]
    assert model.attention_count(transformer.config) == len(transformer.blocks)
    assert model_of(transformer) is model
    layout = model.layout(transformer, {"hidden_states": latent, "encoder_hidden_states": text})
    assert tuple(layout.grid.shape) == GRIDS[name]
    assert (layout.text, layout.text_tokens, layout.kv_len) == ("none", 0, None)


@pytest.mark.parametrize("name", NAMES)
def test_tiny_model_is_of_its_name(name):
    model, transformer = tiny(name)
    assert model_of(transformer) is model


@pytest.mark.parametrize(
    "change",
    [{"in_channels": 36}, {"image_dim": 1280, "added_kv_proj_dim": 256}],
    ids=str,
)
def test_image_to_video_is_not_taken_for_text_to_video(tmp_path, change):
    model, other = tiny("wan2.1-14b", **change)
    with pytest.raises(UnsupportedError, match="WanTransformer3DModel"):
        model_of(other)
    other.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="choose the model it belongs to"):
        model.load(str(tmp_path), dtype=torch.bfloat16)


def test_precisions_are_those_of_a_loaded_checkpoint(tmp_path):
    model, transformer = tiny("wan2.1-1.3b", torch.bfloat16)
    transformer.save_pretrained(tmp_path)
    loaded = model.load(str(tmp_path), dtype=torch.bfloat16)
    assert loaded.dtype is transformer.dtype is torch.bfloat16
    mine, theirs = (
        {name: tensor.dtype for name, tensor in (*t.named_parameters(), *t.named_buffers())}
        for t in (transformer, loaded)
    )
    assert mine == theirs
    assert mine["blocks.0.scale_shift_table"] is mine["rope.freqs_cos"] is torch.float32
    assert mine["blocks.0.attn1.norm_q.weight"] is torch.bfloat16


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (VideoSize(80, 480, 832), "frames=80 must be 4k"),
        (VideoSize(81, 720, 1280), "height=720 must be a multiple of 32"),
        (VideoSize(81, 704, 1296), "width=1296 must be a multiple of 32"),
    ],
)
def test_sizes_that_do_not_fit_are_named(size, message):
    model, transformer = tiny("wan2.2-ti2v-5b")
    with pytest.raises(InvalidInputError, match=message):
        model.example_inputs(transformer, size, batch=1)


# -- the pipeline's call ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_graph_inputs_undo_forward_kwargs(name):
    model, transformer = tiny(name)
    inputs = model.example_inputs(transformer, model.tiny_size, batch=2)
    back = model.graph_inputs(model.forward_kwargs(inputs))
    assert list(back) == list(inputs) == ["hidden_states", "timestep", "encoder_hidden_states"]
    assert all(torch.equal(back[key], inputs[key]) for key in inputs)
    for key, axes in model.dynamic_axes().items():
        assert max(axes) < inputs[key].dim()


def test_whole_timesteps_become_one_per_clip():
    model, transformer = tiny("wan2.1-1.3b")
    inputs = model.example_inputs(transformer, model.tiny_size, batch=2)
    for timestep in (torch.tensor(999), torch.tensor([999]), 999):
        back = model.graph_inputs({**inputs, "timestep": timestep, "attention_kwargs": None})
        assert back["timestep"].tolist() == [999.0, 999.0]
        assert back["timestep"].dtype is torch.float32


def test_calls_that_do_not_fit_are_refused():
    model, transformer = tiny("wan2.1-1.3b")
    call = model.example_inputs(transformer, model.tiny_size, batch=1)
    with pytest.raises(UnsupportedError, match="encoder_hidden_states_image"):
        model.graph_inputs({**call, "encoder_hidden_states_image": torch.ones(1, 257, 8)})
    with pytest.raises(InvalidInputError, match="expand_timesteps=False"):
        model.graph_inputs({**call, "timestep": torch.ones(1, 72)})
    with pytest.raises(InvalidInputError, match="expand_timesteps=True"):
        get_model("wan2.2-ti2v-5b").graph_inputs(call)
    size = VideoSize(29, 128, 128)  # 8 x 8 x 8 tokens
    call = model.example_inputs(transformer, size, batch=1)
    # Where self-attention is told by its tokens; modules tell it in a transformer as it comes.
    with pytest.raises(UnsupportedError, match="clip of 512 tokens"):
        model.check_lengths(model.layout(transformer, call), call)


# -- routing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_zero_sparsity_is_dense_and_half_is_not(name):
    model, transformer = tiny(name)
    inputs = model.example_inputs(transformer, square(name), batch=1)
    dense = forward(model, transformer, inputs)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
    # Two float32 softmaxes that sum 448 keys in another order, through two layers.
    torch.testing.assert_close(forward(model, transformer, inputs), dense, atol=2e-5, rtol=0)
    assert routing.routed == 2 and routing.model is model
    routing.sparsity = 0.5
    sparse = forward(model, transformer, inputs)
    assert torch.isfinite(sparse).all()
    assert (sparse - dense).abs().max() > 1e-2
    rainfusion_trt.disable(transformer)
    assert torch.equal(forward(model, transformer, inputs), dense)


def test_only_self_attention_reaches_the_operator_in_16_bit(monkeypatch):
    model, transformer = tiny("wan2.1-1.3b", torch.bfloat16)
    operator, seen = torch.ops.rainfusion.attention, []

    def record(*arguments):
        seen.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(torch.ops.rainfusion, "attention", record)
    rainfusion_trt.enable(transformer, sparsity=0.0)
    inputs = model.example_inputs(transformer, model.tiny_size, batch=1)
    assert forward(model, transformer, inputs).dtype is torch.bfloat16
    assert len(seen) == 2
    for q, k, v, grid, _sparsity, kv_len, text, *_attributes in seen:
        assert q.shape == k.shape == v.shape == (1, 2, 72, 128)
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        assert grid.shape == (3, 4, 6) and text == "none" and kv_len is None


# -- Pipeline --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "wan2.2-ti2v-5b"])
def test_pipeline_guides_by_two_calls_a_step(name):
    model, transformer = tiny(name)
    pipe = tiny_pipeline(transformer, expand_timesteps=model.token_timesteps)
    size = square(name)
    call = {"prompt": "a fox", "num_inference_steps": 3, "guidance_scale": 5.0}
    call.update(num_frames=size.frames, height=size.height, width=size.width)
    call.update(output_type="latent")
    expected = pipe(**call, generator=torch.Generator().manual_seed(0)).frames
    shapes = []
    with Pipeline(pipe=pipe, backend="torch", sparsity=0.0) as pipeline:
        assert pipeline.model is model
        hook = transformer.register_forward_pre_hook(
            lambda _module, _args, kwargs: shapes.append(kwargs["timestep"].shape),
            with_kwargs=True,
        )
        dense = pipeline(**call, seed=0).frames
        hook.remove()
        sparse = pipeline(**call, seed=0, sparsity=0.5)
    assert shapes == [(1, 448) if model.token_timesteps else (1,)] * 6
    assert sparse.sparsity == (0.0, 0.5, 0.5)
    # Unit scale; guidance multiplies float32 rounding by 5 in each of three steps.
    torch.testing.assert_close(dense, expected, atol=1e-4, rtol=0)
    assert (sparse.frames - expected).abs().max() > 1e-2
