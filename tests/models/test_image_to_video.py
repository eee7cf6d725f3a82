"""Models that take an image: their networks, how they are told apart, and their attention."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from torch import nn

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model, model_of
from tests.helpers.routed_models import SIZE, call_of, run, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

# What an image adds to the parameters of the text-to-video network. A TimestepEmbedding has two
# layers with biases.
_PATCHES_5B = 3072 * 16 * 2 * 2
_OFS = 2 * (512 * 512 + 512)
_GUIDANCE = 256 * 3072 + 3072 + 3072 * 3072 + 3072
ADDED = {
    "cogvideox-5b-i2v": ("cogvideox-5b", _PATCHES_5B),
    "cogvideox1.5-5b-i2v": ("cogvideox1.5-5b", 2 * _PATCHES_5B + _OFS),
    "cogvideox-fun-5b-control": ("cogvideox-5b", _PATCHES_5B),
    "hunyuanvideo-i2v": ("hunyuanvideo", 0),
    "hunyuanvideo-i2v-33ch": ("hunyuanvideo", 3072 * 17 * 2 * 2 - _GUIDANCE),
    "hunyuanvideo-1.5-i2v": ("hunyuanvideo-1.5", 0),
    "hunyuanvideo-1.5-i2v-step-distilled": (
        "hunyuanvideo-1.5",
        256 * 2048 + 2048 + 2048 * 2048 + 2048,
    ),
}
NAMES = tuple(ADDED)
OTHER = VideoSize(33, 96, 160)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_an_image_adds_these_parameters(name):
    """Per network; the blocks are those of text to video, whose number is the published one."""
    text, added = ADDED[name]
    models = get_model(name), get_model(text)
    with torch.device("meta"):
        mine, others = (m.diffusers_class()(**m.config("full", layers=1)) for m in models)
    assert parameters(mine) == parameters(others) + added
    depths = [m.attention_count(m.config()) for m in models]
    assert depths[0] == depths[1]
    assert model_of(mine) is models[0] and model_of(others) is models[1]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cogvideox-5b-i2v", {"ofs_embed_dim": 16}),
        ("cogvideox-5b-i2v", {"in_channels": 16}),
        ("cogvideox1.5-5b-i2v", {"ofs_embed_dim": None}),
        ("cogvideox-5b", {"in_channels": 33}),
        ("hunyuanvideo-i2v", {"guidance_embeds": False}),
        ("hunyuanvideo-i2v-33ch", {"guidance_embeds": True}),
        ("hunyuanvideo-i2v-33ch", {"in_channels": 8}),
        ("hunyuanvideo", {"in_channels": 8}),
        ("hunyuanvideo-1.5", {"use_meanflow": True}),
        ("hunyuanvideo-1.5-i2v", {"in_channels": 14}),
    ],
    ids=str,
)
def test_other_networks_belong_to_no_model(name, change):
    model = get_model(name)
    config = {**model.config("tiny", layers=1), **change}
    with torch.device("meta"):
        other = model.diffusers_class()(**config)
    with pytest.raises(UnsupportedError, match="belongs to no known model"):
        model_of(other)


def test_each_model_knows_its_own_network_alone():
    """No tiny configuration of a class is taken for another model of that class."""
    for name in NAMES:
        model = get_model(name)
        with torch.device("meta"):
            transformer = model.diffusers_class()(**model.config("tiny", layers=1))
        assert model_of(transformer) is model


@pytest.mark.parametrize("name", NAMES)
def test_graph_inputs_undo_forward_kwargs(name):
    model = get_model(name)
    config = model.config("tiny")
    inputs = model.drawn_inputs(config, model.tiny_size, batch=2, dtype=torch.float32)
    back = model.graph_inputs(model.forward_kwargs(inputs))
    assert list(back) == list(inputs)
    assert all(torch.equal(back[key], inputs[key]) for key in inputs)


# -- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_zero_sparsity_is_eager_and_more_is_sparse_everywhere(name):
    """At sizes and batches whose prompts have other lengths; images are random numbers."""
    model, transformer = tiny(name)
    count = model.attention_count(transformer.config)
    sizes = [(SIZE, 1), (SIZE if model.one_size else OTHER, 2)]
    calls = [call_of(model, transformer, size, batch=batch) for size, batch in sizes]
    dense = [run(transformer, call) for call in calls]
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
    assert routing.model is model
    for call, expected in zip(calls, dense, strict=True):
        # float32 softmaxes that sum in another order.
        error = (run(transformer, call) - expected).abs().max() / expected.abs().max()
        assert error < 1e-5 and routing.routed == count
    routing.sparsity = 0.6
    for call, expected in zip(calls, dense, strict=True):
        assert (run(transformer, call) - expected).abs().max() > 1e-3
        report = routing.report()
        assert len(report.routed) == count and not report.dense and not report.skipped


def test_the_first_frame_is_exact_after_one_block():
    """The frame that token replacement takes from the image is a sink frame."""
    model, transformer = tiny("hunyuanvideo-i2v", num_layers=1, num_single_layers=0)
    call = call_of(model, transformer)
    dense = run(transformer, call)
    rainfusion_trt.enable(transformer, sparsity=0.6, method="rainfusion")
    changed = (run(transformer, call) - dense).abs().amax(dim=(0, 1, 3, 4))
    assert changed[0] < 1e-5 and changed[1:].max() > 1e-3


@pytest.mark.parametrize("name", ["cogvideox1.5-5b-i2v", "hunyuanvideo-i2v"])
def test_the_whole_transformer_is_one_graph(name):
    model, transformer = tiny(name)
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.6, method="rainfusion")
    sparse = run(transformer, call)
    torch._dynamo.reset()
    compiled = torch.compile(transformer, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, call), sparse)
    assert routing.routed == model.attention_count(transformer.config)


# -- what a graph cannot take ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [VideoSize(13, 64, 96), VideoSize(9, 96, 64), VideoSize(9, 64, 112)], ids=str
)
def test_a_learned_position_table_has_one_size(size):
    model = get_model("cogvideox-5b-i2v")
    with pytest.raises(InvalidInputError, match=rf"size {size}.*learned for 9x64x96 alone"):
        model.extents(model.config("tiny"), size, 2)
    assert model.dynamic_axes() == {}


def test_a_learned_position_table_is_of_the_checkpoint(tmp_path):
    """It is saved, loaded and prepared as what it is, and not computed."""
    model = get_model("cogvideox-5b-i2v")
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    table = torch.randn(transformer.patch_embed.pos_embedding.shape)
    transformer.patch_embed.pos_embedding = table
    transformer.save_pretrained(tmp_path)
    loaded = model.load(str(tmp_path), dtype=torch.float16)
    model.prepare(loaded, model.tiny_size)
    assert torch.equal(loaded.patch_embed.pos_embedding, table.half())


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("cogvideox-5b-i2v", {"ofs": torch.ones(1)}, "ofs"),
        ("hunyuanvideo-i2v-33ch", {"guidance": torch.ones(1)}, "guidance.*no embedded guidance"),
        ("hunyuanvideo-1.5-i2v", {"timestep_r": torch.ones(1)}, "timestep_r"),
    ],
)
def test_arguments_of_another_network_are_refused(name, given, words):
    model = get_model(name)
    inputs = model.drawn_inputs(model.config("tiny"), model.tiny_size, batch=1, dtype=torch.float32)
    with pytest.raises(UnsupportedError, match=words):
        model.graph_inputs({**model.forward_kwargs(inputs), **given})


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("cogvideox1.5-5b-i2v", "ofs"),
        ("hunyuanvideo-i2v", "guidance"),
        ("hunyuanvideo-1.5-i2v", "image_embeds"),
        ("hunyuanvideo-1.5-i2v-step-distilled", "timestep_r"),
    ],
)
def test_arguments_that_are_missing_are_named(name, missing):
    model = get_model(name)
    inputs = model.drawn_inputs(model.config("tiny"), model.tiny_size, batch=1, dtype=torch.float32)
    with pytest.raises(InvalidInputError, match=f"{missing} is missing"):
        model.graph_inputs({**model.forward_kwargs(inputs), missing: None})
