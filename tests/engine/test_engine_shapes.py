"""Optimisation profiles against the inputs of the ONNX file."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rainfusion_trt.engine.onnx_file import OnnxFile
from rainfusion_trt.engine.recipe import EngineRecipe, load_recipe
from rainfusion_trt.engine.shapes import clip_shapes, resolve_profiles
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.graph_file import GraphAccount, GraphTensor
from rainfusion_trt.models import get_model
from rainfusion_trt.operator.settings import AttentionSettings

ROOT = Path(__file__).parents[2]
# As `tests/models/test_graph_inputs.py` explains.
GOLDEN = json.loads((ROOT / "tests/models/graph_inputs_0_1.json").read_text())

X = GraphTensor("x", "float16", ("batch", "tokens", 64))
Y = GraphTensor("y", "float32", ("batch", None))
SPARSITY = GraphTensor("sparsity", "float32", (1,))


def onnx_file(*inputs: GraphTensor, config: str = "{}") -> OnnxFile:
    account = GraphAccount(dtype="float16", config=json.loads(config))
    return OnnxFile(Path("m.onnx"), (), inputs, (), ("attn",), (), account)


def recipe(**shapes) -> EngineRecipe:
    return EngineRecipe.model_validate({"precision": "float16", "shapes": {"p": shapes}})


def test_fixed_inputs_fill_in():
    resolved = resolve_profiles(recipe(x=[2, 29, 64], y=[2, 3]), onnx_file(X, Y, SPARSITY))
    assert list(resolved["p"]) == ["x", "y", "sparsity"]
    assert resolved["p"]["sparsity"].max == (1,)


def test_fixed_model_needs_no_shapes():
    bare = EngineRecipe(precision="float16")
    assert resolve_profiles(bare, onnx_file(SPARSITY)) == {}
    with pytest.raises(InvalidInputError, match=r"dynamic inputs \(x\)"):
        resolve_profiles(bare, onnx_file(X, SPARSITY))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"x": [2, 29, 64]}, ["no shape", "'y'"]),
        ({"x": [2, 29, 64], "y": [2, 3], "z": [1]}, ["'z'", "x, y, sparsity"]),
        ({"x": [2, 29], "y": [2, 3]}, ["'x'", "2x29", "rank 3"]),
        ({"x": [2, 29, 96], "y": [2, 3]}, ["axis 2", "fixed at 64", "2x29x96"]),
        ({"x": [2, 29, 64], "y": [1, 3]}, ["'y'", "batch", "1 here and 2 in 'x'"]),
        ({"x": [2, 29, 64], "y": [2, 3], "sparsity": [2]}, ["sparsity", "fixed at 1"]),
    ],
)
def test_shapes_that_do_not_fit(shapes, words):
    with pytest.raises(InvalidInputError) as error:
        resolve_profiles(recipe(**shapes), onnx_file(X, Y, SPARSITY))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("extent", [0, -1, -(2**63)])
def test_a_fixed_extent_that_is_none(extent):
    with pytest.raises(InvalidInputError, match=f"'sparsity' of m.onnx: min {extent} has an ext"):
        resolve_profiles(recipe(x=[2, 29, 64], y=[2, 3]), onnx_file(X, Y, _one(extent)))


def test_an_account_with_an_extent_that_is_none():
    config = {**get_model("cogvideox-5b").config(), "text_embed_dim": 0}
    file = onnx_file(*COGVIDEOX, config=json.dumps(config))
    with pytest.raises(InvalidInputError, match=r"profile 'clip', .*below 1: export the model ag"):
        resolve_profiles(video_recipe(frames=13, height=64, width=96, batch=2), file)


def _one(extent: int) -> GraphTensor:
    return GraphTensor("sparsity", "float32", (extent,))


def video_recipe(**size) -> EngineRecipe:
    return EngineRecipe.model_validate(
        {"model": "cogvideox-5b", "precision": "float16", "sizes": {"clip": size}}
    )


COGVIDEOX = (
    GraphTensor("hidden_states", "float16", ("batch", "frames", 16, "height", "width")),
    GraphTensor("encoder_hidden_states", "float16", ("batch", "text_tokens", 4096)),
    GraphTensor("timestep", "int64", ("batch",)),
    GraphTensor("rotary_cos", "float32", ("video_tokens", 64)),
    GraphTensor("rotary_sin", "float32", ("video_tokens", 64)),
    SPARSITY,
)


def test_shapes_follow_from_the_clip():
    size = {
        "frames": {"min": 9, "opt": 49, "max": 49},
        "height": 480,
        "width": 720,
        "batch": {"min": 1, "opt": 2, "max": 2},
    }
    shapes = resolve_profiles(video_recipe(**size), onnx_file(*COGVIDEOX))["clip"]
    assert shapes["hidden_states"].min == (1, 3, 16, 60, 90)
    assert shapes["hidden_states"].opt == (2, 13, 16, 60, 90)
    assert shapes["encoder_hidden_states"].max == (2, 226, 4096)
    assert shapes["timestep"].min == (1,)
    assert shapes["rotary_cos"].min == (3 * 30 * 45, 64)
    assert shapes["rotary_sin"].max == (13 * 30 * 45, 64)
    assert shapes["sparsity"].fixed


def test_sizes_have_the_exact_frames_of_the_file():
    """The usual and the largest; a smaller one is refused in a call."""
    file = onnx_file(*COGVIDEOX)
    settings = AttentionSettings(exact_frames=(12,))
    account = file.account.model_copy(update={"settings": settings})
    file = dataclasses.replace(file, account=account)
    size = {"height": 480, "width": 720, "batch": 2}
    frames = {"min": 9, "opt": 49, "max": 49}
    assert resolve_profiles(video_recipe(frames=frames, **size), file)
    for frames in (45, {"min": 9, "opt": 45, "max": 49}):
        words = "'clip', opt size: exact_frames=.* names latent frame 12, and the clip has 12"
        with pytest.raises(InvalidInputError, match=words):
            resolve_profiles(video_recipe(frames=frames, **size), file)


def test_room_for_conditions_is_in_frames_of_the_clip():
    axes = ("batch", "packed_tokens")
    inputs = (
        GraphTensor("hidden_states", "bfloat16", (*axes, 128)),
        GraphTensor("encoder_hidden_states", "bfloat16", ("batch", "text_tokens", 4096)),
        GraphTensor("timestep", "float32", axes),
        GraphTensor("encoder_attention_mask", "bfloat16", ("batch", "text_tokens")),
        GraphTensor("video_coords", "float32", (3, "packed_tokens")),
        GraphTensor("grid", "bfloat16", ("grid_frames", "grid_height", "grid_width")),
    )
    frames = {"min": 17, "opt": 33, "max": 33}
    size = {"frames": frames, "height": 64, "width": 96, "batch": 2}
    for room, tokens in (
        ({}, (18, 30, 30)),
        ({"condition_frames": 1}, (24, 36, 36)),
        ({"condition_frames": {"min": 0, "opt": 1, "max": 4}}, (18, 36, 54)),
    ):
        recipe = EngineRecipe.model_validate(
            {"model": "ltx", "precision": "bfloat16", "sizes": {"clip": {**size, **room}}}
        )
        shapes = resolve_profiles(recipe, onnx_file(*inputs, SPARSITY))["clip"]
        for name, axis in (("hidden_states", 1), ("timestep", 1), ("video_coords", 1)):
            found = shapes[name]
            assert (found.min[axis], found.opt[axis], found.max[axis]) == tokens
        assert (shapes["grid"].min, shapes["grid"].max) == ((3, 2, 3), (5, 2, 3))
    with pytest.raises(InvalidInputError, match=r"'clip'.*condition_frames=1: cogvideox-5b has no"):
        resolve_profiles(video_recipe(**size, condition_frames=1), onnx_file(*COGVIDEOX))


def test_configuration_of_the_file_counts():
    config = '{"num_layers": 1, "text_embed_dim": 32, "max_text_seq_length": 16, '
    config += '"use_rotary_positional_embeddings": true}'
    inputs = (GraphTensor("encoder_hidden_states", "float16", ("batch", "text", 32)),)
    file = onnx_file(*COGVIDEOX[:1], *inputs, *COGVIDEOX[2:], config=config)
    size = {"frames": 9, "height": 64, "width": 96, "batch": 2}
    shapes = resolve_profiles(video_recipe(**size), file)["clip"]
    assert shapes["encoder_hidden_states"].opt == (2, 16, 32)


def test_clip_the_model_does_not_make():
    size = {"frames": 48, "height": 480, "width": 720, "batch": 2}
    with pytest.raises(InvalidInputError, match=r"'clip'.*frames=48"):
        resolve_profiles(video_recipe(**size), onnx_file(*COGVIDEOX))


# -- every model -----------------------------------------------------------------------------------


def file_of_0_1(name: str) -> OnnxFile:
    """The inputs of a tiny model's file, with the names of dimensions that version 0.1 wrote."""
    inputs = [
        GraphTensor(key, "float32", tuple(shape)) for key, shape in GOLDEN[name]["file"].items()
    ]
    return onnx_file(*inputs, config=json.dumps(get_model(name).config("tiny")))


@pytest.mark.parametrize("name", list(GOLDEN))
def test_files_of_version_0_1_get_the_shapes_of_its_examples(name):
    model = get_model(name)
    shapes = clip_shapes(model, file_of_0_1(name), model.tiny_size, 2)
    assert shapes == {key: tuple(shape) for key, (shape, _) in GOLDEN[name]["tiny"].items()}


@pytest.mark.parametrize("name", list(GOLDEN))
def test_recipes_at_the_standard_size(name):
    """The recipes under engines/, on files whose axes have no names and no numbers at all."""
    model, full = get_model(name), GOLDEN[name]["full"]
    inputs = [
        GraphTensor(key, "bfloat16", (None,) * len(shape)) for key, (shape, _) in full.items()
    ]
    recipe = load_recipe(ROOT / f"engines/{name}.yaml")
    resolved = resolve_profiles(recipe, onnx_file(*inputs, SPARSITY))
    expected = {key: tuple(shape) for key, (shape, _) in full.items()}
    assert recipe.model == model.name and expected in [
        {key: shape.opt for key, shape in shapes.items() if key != "sparsity"}
        for shapes in resolved.values()
    ]


def test_an_input_that_only_the_file_has_is_resolved_by_its_names():
    extra = GraphTensor("image", "float16", ("batch", "grid_frames", "video_tokens", 7))
    size = {"frames": 9, "height": 64, "width": 96, "batch": 2}
    shapes = resolve_profiles(video_recipe(**size), onnx_file(*COGVIDEOX, extra))["clip"]
    assert shapes["image"].opt == (2, 3, 3 * 4 * 6, 7)
    other = GraphTensor("image", "float16", ("batch", "image_tokens", 7))
    with pytest.raises(
        InvalidInputError, match=r"'clip'.*axis 1.*'image'.*ximage_tokensx7.*`shapes`"
    ):
        resolve_profiles(video_recipe(**size), onnx_file(*COGVIDEOX, other))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (COGVIDEOX[:-2], ["no input 'rotary_sin'", "cogvideox-5b", "rotary_cos"]),
        (
            (GraphTensor("hidden_states", "float16", ("batch", "tokens", 16)), *COGVIDEOX[1:]),
            ["'hidden_states'", "batchxtokensx16", "batchxframesxin_channelsxheightxwidth"],
        ),
        (
            (*COGVIDEOX[:2], GraphTensor("timestep", "int64", (3,)), *COGVIDEOX[3:]),
            ["'timestep'", "fixed at 3"],
        ),
        (
            (
                *COGVIDEOX[:1],
                GraphTensor("encoder_hidden_states", "float16", ("batch", 226, 32)),
                *COGVIDEOX[2:],
            ),
            ["'encoder_hidden_states'", "fixed at 32", "2x226x4096"],
        ),
    ],
    ids=["missing", "rank", "batch", "channels"],
)
def test_files_of_another_model_are_refused(inputs, words):
    size = {"frames": 9, "height": 64, "width": 96, "batch": 2}
    with pytest.raises(InvalidInputError) as error:
        resolve_profiles(video_recipe(**size), onnx_file(*inputs))
    for word in words:
        assert word in str(error.value)


WITHOUT_DIFFUSERS = """
import sys
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.engine.recipe import EngineRecipe
from rainfusion_trt.engine.shapes import resolve_profiles

try:
    import diffusers
except ImportError as error:
    assert "not here" in str(error)
else:
    raise SystemExit("diffusers can be imported")
clip = {"frames": {"min": 9, "opt": 9, "max": 17}, "height": 64, "width": 96, "batch": 2}
recipe = {"model": "cogvideox-5b", "precision": "float16", "sizes": {"clip": clip}}
shapes = resolve_profiles(EngineRecipe.model_validate(recipe), read_for_build(sys.argv[1]))["clip"]
print({name: shape.max for name, shape in shapes.items()})
"""


def test_shapes_need_no_diffusers(exported, tmp_path):
    """A real file, in a process in which importing diffusers raises."""
    (tmp_path / "diffusers.py").write_text("raise ImportError('not here')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DIFFUSERS, str(exported / "float16.onnx")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == {
        "hidden_states": (2, 5, 16, 8, 12),
        "encoder_hidden_states": (2, 16, 32),
        "timestep": (2,),
        "rotary_cos": (5 * 4 * 6, 64),
        "rotary_sin": (5 * 4 * 6, 64),
        "sparsity": (1,),
    }
