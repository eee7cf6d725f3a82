"""Wan from images, control videos, poses and faces: in the registry and under `enable`."""

from __future__ import annotations

import functools

import pytest
import torch
import torch._dynamo

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model, model_of

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = ("wan2.1-i2v-14b", "wan2.1-flf2v-14b", "wan2.2-i2v-a14b")
VACE = ("wan2.1-vace-1.3b", "wan2.1-vace-14b")
ANIMATE = "wan2.2-animate-14b"
NAMES = (*IMAGE, *VACE, ANIMATE)
# One of each kind of call: with an image, with two, without embeddings, control, pose and face.
KINDS = (*IMAGE, VACE[0], ANIMATE)
CONDITIONS = {  # what the graph takes beside noise, timestep and text
    "wan2.1-i2v-14b": ["encoder_hidden_states_image"],
    "wan2.1-flf2v-14b": ["encoder_hidden_states_image"],
    "wan2.2-i2v-a14b": [],  # it is in the channels alone
    **dict.fromkeys(VACE, ["control_hidden_states", "control_hidden_states_scale"]),
    ANIMATE: ["encoder_hidden_states_image", "pose_hidden_states", "face_pixel_values"],
}


@functools.cache
def tiny(name: str) -> tuple:
    model = get_model(name)
    return model, model.create(model.config("tiny"), dtype=torch.float32)


def square(name: str) -> VideoSize:
    """7 x 8 x 8 tokens: enough blocks for sparsity to show."""
    return VideoSize(21 if name == ANIMATE else 25, 128, 128)


@torch.no_grad()
def run(transformer, call) -> torch.Tensor:
    return transformer(**call, return_dict=False)[0]


def call_of(model, transformer, size: VideoSize, batch: int) -> dict:
    inputs = model.example_inputs(transformer, size, batch=batch)
    if "control_hidden_states_scale" in inputs:
        inputs["control_hidden_states_scale"] = torch.tensor([0.7, 1.2])
    return model.forward_kwargs(inputs)


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


# -- configuration ---------------------------------------------------------------------------------


def parameters(name: str, layers: int) -> int:
    """Of the full width and few layers, on the meta device."""
    model = get_model(name)
    with torch.device("meta"):
        transformer = model.diffusers_class()(**model.config("full", layers=layers))
    return sum(p.numel() for p in transformer.parameters())


def block(name: str) -> int:
    return parameters(name, 2) - parameters(name, 1)


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_images_add_channels_and_an_embedder():
    base, width = parameters("wan2.1-14b", 1), 5120
    channels = 20 * 4 * width
    keys_and_values = 2 * linear(width, width) + width  # and their norm
    embedder = 2 * 1280 + linear(1280, 1280) + linear(1280, width) + 2 * width
    image = base + channels + keys_and_values + embedder
    assert parameters("wan2.1-i2v-14b", 1) == image
    assert parameters("wan2.1-flf2v-14b", 1) == image + 514 * 1280
    assert parameters("wan2.2-i2v-a14b", 1) == base + channels
    assert block("wan2.1-i2v-14b") == block("wan2.1-14b") + keys_and_values
    for name in IMAGE:
        assert get_model(name).config()["num_layers"] == 40


@pytest.mark.parametrize(
    ("name", "base", "width", "hints", "last"),
    [
        ("wan2.1-vace-1.3b", "wan2.1-1.3b", 1536, 15, 28),
        ("wan2.1-vace-14b", "wan2.1-14b", 5120, 8, 35),
    ],
)
def test_vace_adds_a_branch_of_blocks_with_projections(name, base, width, hints, last):
    patches, projection = 96 * 4 * width + width, linear(width, width)
    branch = block(base) + projection  # a block and its output; the first has an input as well
    assert parameters(name, 1) == parameters(base, 1) + patches + branch + projection
    model, config = get_model(name), get_model(name).config()
    assert (len(config["vace_layers"]), config["vace_layers"][-1]) == (hints, last)
    assert model.attention_count(config) == config["num_layers"] + hints
    fewer = model.config("full", layers=7)
    assert fewer["vace_layers"] == [layer for layer in config["vace_layers"] if layer < 7]


def test_animate_adds_pose_motion_and_faces():
    image, width, size = parameters("wan2.1-i2v-14b", 1), 5120, 512
    pose = 16 * 4 * width + width
    sides = {512: 32, 256: 64, 128: 128, 64: 256, 32: 512, 16: 512, 8: 512, 4: 512}
    motion = 3 * 32 + 32 + 512 * 512 * 16 + 4 * linear(size, size) + linear(size, 20) + size * 20
    for side, channels in sides.items():
        if side > 4:
            out = sides[side // 2]
            motion += channels * channels * 9 + channels + channels * out * 10 + out
    conv = 1024 * 1024 * 3 + 1024
    face = 512 * 4096 * 3 + 4096 + 2 * conv + linear(1024, width) + width
    adapter = 4 * linear(width, width) + 2 * 128
    one = image + pose + motion + face + adapter
    assert parameters(ANIMATE, 1) == one
    assert parameters(ANIMATE, 5) == one + 4 * block("wan2.1-i2v-14b")  # one for five blocks


@pytest.mark.parametrize("name", NAMES)
def test_tokens_at_the_standard_size(name):
    model = get_model(name)
    size, full = model.defaults.size, model.config()
    extents = model.extents(full, size, 1)
    grid = extents["grid_frames"], extents["grid_height"], extents["grid_width"]
    assert grid == ((21, 30, 52) if name == "wan2.1-vace-1.3b" else (21, 45, 80))
    assert [given.name for given in model.inputs][3:] == CONDITIONS[name]
    if name == ANIMATE:  # the reference image is a latent frame more
        assert (size.frames, extents["pose_frames"], extents["face_frames"]) == (77, 20, 77)


@pytest.mark.parametrize("name", NAMES)
def test_a_transformer_is_of_its_model(name):
    model, transformer = tiny(name)
    assert model_of(transformer) is model
    assert model_of(transformer, components=len(model.components)) is model


LOADED = (*KINDS, "wan2.1-14b")


@pytest.mark.parametrize("name", LOADED)
def test_a_checkpoint_of_another_wan_is_refused_in_one_line(name, tmp_path):
    tiny(name)[1].save_pretrained(tmp_path)
    for other in LOADED:
        model = get_model(other)
        if other == name:
            assert model.matches(model.load(str(tmp_path), dtype=torch.float32))
            continue
        with pytest.raises(UnsupportedError, match="choose the model it belongs to") as refusal:
            model.load(str(tmp_path), dtype=torch.float32)
        assert "\n" not in str(refusal.value)


# -- the pipeline's call ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_graph_inputs_undo_forward_kwargs(name):
    model, transformer = tiny(name)
    inputs = model.example_inputs(transformer, model.tiny_size, batch=2)
    back = model.graph_inputs(model.forward_kwargs(inputs))
    assert list(back) == list(inputs)
    assert all(torch.equal(back[key], inputs[key]) for key in inputs)
    assert [len(axes) for axes in model.dynamic_axes().values()][0] == 4


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("wan2.1-i2v-14b", [2, 257, 24], r"takes \[1, 257, image_dim\].*image alone"),
        ("wan2.1-flf2v-14b", [1, 257, 24], r"takes \[2, 257, image_dim\].*last_image"),
        ("wan2.1-flf2v-14b", [1, 514, 24], r"takes \[2, 257, image_dim\].*last_image"),
    ],
)
def test_images_that_do_not_fit_are_named(name, given, message):
    model, transformer = tiny(name)
    call = call_of(model, transformer, model.tiny_size, 1)
    with pytest.raises(InvalidInputError, match=message):
        model.graph_inputs({**call, "encoder_hidden_states_image": torch.ones(given)})
    with pytest.raises(InvalidInputError, match="image is missing.*WanImageToVideoPipeline"):
        model.graph_inputs({**call, "encoder_hidden_states_image": None})


def test_a_model_without_image_embeddings_refuses_them():
    model, transformer = tiny("wan2.2-i2v-a14b")
    call = call_of(model, transformer, model.tiny_size, 1)
    with pytest.raises(UnsupportedError, match="has no image embeddings"):
        model.graph_inputs({**call, "encoder_hidden_states_image": torch.ones(1, 257, 24)})


def test_a_control_of_other_length_is_refused():
    model, transformer = tiny(VACE[0])
    call = call_of(model, transformer, model.tiny_size, 1)
    short = call["control_hidden_states"][:, :, :2]
    with pytest.raises(InvalidInputError, match=r"has \[2, 8, 12\] latent frames.*\[3, 8, 12\]"):
        model.graph_inputs({**call, "control_hidden_states": short})
    with pytest.raises(InvalidInputError, match="scale is missing"):
        model.graph_inputs({**call, "control_hidden_states_scale": None})


def test_poses_and_faces_of_another_segment_are_refused():
    model, transformer = tiny(ANIMATE)
    call = call_of(model, transformer, model.tiny_size, 1)
    for name, value in (
        ("pose_hidden_states", call["pose_hidden_states"][:, :, 1:]),
        ("face_pixel_values", call["face_pixel_values"][:, :, 1:]),
    ):
        with pytest.raises(InvalidInputError, match="4 latent frames come with .* takes 3 and 9"):
            model.graph_inputs({**call, name: value})


# -- routing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_zero_sparsity_is_dense_and_half_is_not(name):
    """With conditions that are not zeros, at several sizes and batches."""
    model, transformer = tiny(name)
    sizes = ((model.tiny_size, 2), (VideoSize(13, 48, 80), 1), (square(name), 1))
    calls = [call_of(model, transformer, *size) for size in sizes]
    dense = [run(transformer, call) for call in calls]
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
    try:
        assert routing.model is model
        for call, expected in zip(calls, dense, strict=True):
            assert relative(run(transformer, call), expected) < 1e-5
        routing.sparsity = 0.5
        assert relative(run(transformer, calls[-1]), dense[-1]) > 1e-3
        report = routing.report()
        assert len(report.routed) == model.attention_count(transformer.config)
        assert not report.dense and not report.skipped
        branches = {place.split(".")[0] for place in report.routed}
        assert branches == ({"blocks", "vace_blocks"} if name in VACE else {"blocks"})
    finally:
        rainfusion_trt.disable(transformer)
    assert torch.equal(run(transformer, calls[-1]), dense[-1])


@pytest.mark.parametrize("name", KINDS)
def test_every_condition_matters(name):
    """What the other tests compare would be blind to a condition that is lost on the way."""
    model, transformer = tiny(name)
    call = call_of(model, transformer, model.tiny_size, 1)
    plain = run(transformer, call)
    channels = call["hidden_states"].clone()
    channels[:, 16:] = 0
    changed = {} if name in VACE else {"hidden_states": channels}
    changed.update({key: call[key].roll(1, -1) for key in CONDITIONS[name]})
    for key, value in changed.items():
        assert relative(run(transformer, {**call, key: value}), plain) > 1e-3, key


@pytest.mark.parametrize("name", [VACE[0], ANIMATE])
def test_a_compiled_transformer_is_one_graph(name):
    model, transformer = tiny(name)
    call = call_of(model, transformer, square(name), 1)
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    try:
        expected = run(transformer, call)
        compiled = torch.compile(transformer, backend="eager", fullgraph=True)
        torch.testing.assert_close(run(compiled, call), expected)
        assert routing.routed == model.attention_count(transformer.config)
    finally:
        rainfusion_trt.disable(transformer)
        torch._dynamo.reset()


@pytest.mark.parametrize("name", ["wan2.1-i2v-14b", VACE[0], ANIMATE])
def test_the_first_latent_frame_stays_exact(name):
    """The user's image, VACE's reference or Animate's: its tokens attend to all, by default."""
    model, transformer = tiny(name)
    call = call_of(model, transformer, square(name), 1)
    assert model.grid_shape(transformer, call)[0] == 7
    seen = []
    hook = transformer.blocks[0].attn1.register_forward_hook(lambda *a: seen.append(a[-1]))
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
    try:
        run(transformer, call)
        routing.sparsity = 0.9
        run(transformer, call)
    finally:
        hook.remove()
        rainfusion_trt.disable(transformer)
    dense, sparse = seen
    assert relative(sparse[:, :64], dense[:, :64]) < 1e-5
    assert relative(sparse[:, 64:], dense[:, 64:]) > 1e-2


def test_graph_calls_compute_what_diffusers_does():
    """Animate has a forward of its own for graphs, with the motion encoder's basis baked."""
    model, transformer = tiny(ANIMATE)
    for size, batch in ((model.tiny_size, 2), (VideoSize(13, 48, 80), 1)):
        call = call_of(model, transformer, size, batch)
        before = run(transformer, call)
        model.prepare(transformer, size)
        assert torch.equal(run(transformer, call), before)
        with torch.no_grad():
            assert relative(model.call(transformer, call), before) < 1e-5
