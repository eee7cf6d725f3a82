"""The registry, and CogVideoX in it: shapes, weights, inputs, errors."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model, model_names, model_of

# Published parameter counts: 2B, 5B and 1.5-5B.
PARAMETERS = {
    "cogvideox-2b": 1_693_783_872,
    "cogvideox-5b": 5_570_283_072,
    "cogvideox1.5-5b": 5_570_676_352,
}
# Token grids (T, H, W) at the standard sizes.
GRIDS = {
    "cogvideox-2b": (13, 30, 45),
    "cogvideox-5b": (13, 30, 45),
    "cogvideox1.5-5b": (11, 48, 85),
}


def tiny(name: str, **options):
    model = get_model(name)
    return model, model.create(model.config("tiny"), dtype=torch.float32, **options)


def test_names_and_aliases():
    assert set(PARAMETERS) <= set(model_names())
    assert get_model("CogVideoX") is get_model("cogvideox-5b")
    with pytest.raises(InvalidInputError, match="'sora'.*cogvideox-2b"):
        get_model("sora")


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_full_size_has_the_published_parameters(name):
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**get_model(name).config())
    assert sum(p.numel() for p in transformer.parameters()) == PARAMETERS[name]
    assert get_model(name).attention_count(transformer.config) == len(
        transformer.transformer_blocks
    )
    assert model_of(transformer) is get_model(name)


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_layout_at_the_standard_size(name):
    """On meta tensors: the grid is a view whose shape is the token grid."""
    model = get_model(name)
    config = {**model.config("full", layers=1), "num_attention_heads": 1}
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**config)
    frames, height, width = GRIDS[name]
    patch = config.get("patch_size_t") or 1
    call = {
        "hidden_states": torch.empty(2, frames * patch, 16, height * 2, width * 2, device="meta"),
        "encoder_hidden_states": torch.empty(2, 226, 4096, device="meta"),
    }
    layout = model.layout(transformer, call)
    assert tuple(layout.grid.shape) == GRIDS[name]
    assert (layout.text, layout.text_tokens, layout.kv_len) == ("first", 226, None)


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_prepared_transformer_computes_the_same(name):
    model, transformer = tiny(name)
    for size in (model.tiny_size, VideoSize(17, 48, 64)):
        call = model.forward_kwargs(model.example_inputs(transformer, size, batch=1))
        with torch.no_grad():
            before = transformer(**call).sample
            model.prepare(transformer, size)
            assert torch.equal(transformer(**call).sample, before)


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_random_weights_are_seeded_and_keep_unit_scale(name):
    model, transformer = tiny(name, seed=5)
    again, other = tiny(name, seed=5)[1], tiny(name, seed=6)[1]
    weights = [m.proj_out.weight for m in (transformer, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    inputs = model.example_inputs(transformer, model.tiny_size, batch=2)
    with torch.no_grad():
        sample = transformer(**model.forward_kwargs(inputs)).sample
    assert sample.shape == inputs["hidden_states"].shape
    assert 0.5 < sample.std() < 2.0


def test_activations_stay_sane_through_42_layers():
    model = get_model("cogvideox-5b")
    config = {**model.config("tiny"), "num_layers": 42}
    transformer = model.create(config, dtype=torch.float16)
    largest = []
    for block in transformer.transformer_blocks:
        block.register_forward_hook(lambda _m, _i, out: largest.append(out[0].abs().max()))
    inputs = model.example_inputs(transformer, model.tiny_size, batch=1)
    with torch.no_grad():
        sample = transformer(**model.forward_kwargs(inputs)).sample
    assert len(largest) == 42 and max(largest) < 1000  # float16 ends at 65504
    assert 0.5 < sample.float().std() < 2.0


def test_buffers_survive_creation():
    """2B's position table is a buffer that no checkpoint holds."""
    _, transformer = tiny("cogvideox-2b")
    config = get_model("cogvideox-2b").config("tiny")
    expected = CogVideoXTransformer3DModel(**config).patch_embed.pos_embedding
    assert torch.equal(transformer.patch_embed.pos_embedding, expected)


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_graph_inputs_undo_forward_kwargs(name):
    model, transformer = tiny(name)
    inputs = model.example_inputs(transformer, model.tiny_size, batch=2)
    back = model.graph_inputs(model.forward_kwargs(inputs))
    assert list(back) == list(inputs)
    assert all(torch.equal(back[key], inputs[key]) for key in inputs)
    for name, axes in model.dynamic_axes().items():
        assert max(axes) < inputs[name].dim()


@pytest.mark.parametrize(
    ("name", "size"), [("cogvideox-5b", (49, 480, 720)), ("cogvideox1.5-5b", (9, 96, 160))]
)
def test_rotary_tables_are_the_pipelines(name, size):
    model = get_model(name)
    config = {**model.config("full", layers=1), "num_attention_heads": 1}
    transformer = model.create(config, dtype=torch.float32)
    inputs = model.example_inputs(transformer, VideoSize(*size), batch=1)
    pipeline = CogVideoXPipeline.__new__(CogVideoXPipeline)
    pipeline.transformer, pipeline.vae_scale_factor_spatial = transformer, 8
    cos, sin = CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipeline, size[1], size[2], inputs["hidden_states"].shape[1], torch.device("cpu")
    )
    torch.testing.assert_close(inputs["rotary_cos"], cos, atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs["rotary_sin"], sin, atol=1e-5, rtol=0)


def test_pipeline_calls_that_do_not_fit_are_refused():
    model, transformer = tiny("cogvideox-5b")
    inputs = model.example_inputs(transformer, model.tiny_size, batch=1)
    call = model.forward_kwargs(inputs)
    with pytest.raises(UnsupportedError, match="ofs"):
        model.graph_inputs({**call, "ofs": torch.ones(1)})
    with pytest.raises(InvalidInputError, match="image_rotary_emb is missing"):
        model.graph_inputs({**call, "image_rotary_emb": None})
    with pytest.raises(InvalidInputError, match="image_rotary_emb is given"):
        get_model("cogvideox-2b").graph_inputs(call)


def test_image_to_video_variants_are_not_taken_for_a_known_model():
    config = {**get_model("cogvideox-5b").config("tiny"), "ofs_embed_dim": 16}
    with pytest.raises(UnsupportedError, match="CogVideoXTransformer3DModel"):
        model_of(CogVideoXTransformer3DModel(**config))
    with pytest.raises(UnsupportedError, match="Linear"):
        model_of(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("folder", ["transformer", "."])
def test_load_takes_a_pipeline_or_a_transformer(tmp_path, folder):
    model, transformer = tiny("cogvideox-5b", seed=9)
    transformer.save_pretrained(tmp_path / folder)
    loaded = model.load(str(tmp_path), dtype=torch.float16)
    assert loaded.dtype is torch.float16 and not loaded.training
    expected = transformer.proj_out.weight.half()
    assert torch.equal(loaded.proj_out.weight, expected)
    with pytest.raises(UnsupportedError, match="not cogvideox1.5-5b"):
        get_model("cogvideox1.5-5b").load(str(tmp_path), dtype=torch.float16)


def test_load_names_what_is_missing(tmp_path):
    model = get_model("cogvideox-5b")
    with pytest.raises(InvalidInputError, match="neither a directory, a file nor a hub id"):
        model.load(str(tmp_path / "nothing"), dtype=torch.float16)
    with pytest.raises(InvalidInputError, match="transformer/config.json"):
        model.load(str(tmp_path), dtype=torch.float16)
    config = {"_class_name": "CogVideoXTransformer3DModel", **model.config("tiny")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInputError, match="could not be loaded"):
        model.load(str(tmp_path), dtype=torch.float16)


@pytest.mark.parametrize("layers", [0, 43, -1])
def test_depth_must_exist(layers):
    with pytest.raises(InvalidInputError, match=f"layers={layers}"):
        get_model("cogvideox-5b").config("full", layers=layers)
