"""Optimisation profiles against the inputs of the ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rainfusion_trt.engine.onnx_file import OnnxFile
from rainfusion_trt.engine.profile import EngineProfile
from rainfusion_trt.engine.shapes import resolve_profiles
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.graph_file import GraphAccount, GraphTensor

X = GraphTensor("x", "float16", ("batch", "tokens", 64))
Y = GraphTensor("y", "float32", ("batch", None))
SPARSITY = GraphTensor("sparsity", "float32", (1,))


def onnx_file(*inputs: GraphTensor, config: str = "{}") -> OnnxFile:
    account = GraphAccount(dtype="float16", config=json.loads(config))
    return OnnxFile(Path("m.onnx"), (), inputs, (), ("attn",), (), account)


def recipe(**shapes) -> EngineProfile:
    return EngineProfile.model_validate({"precision": "float16", "shapes": {"p": shapes}})


def test_fixed_inputs_fill_in():
    resolved = resolve_profiles(recipe(x=[2, 29, 64], y=[2, 3]), onnx_file(X, Y, SPARSITY))
    assert list(resolved["p"]) == ["x", "y", "sparsity"]
    assert resolved["p"]["sparsity"].max == (1,)


def test_fixed_model_needs_no_shapes():
    bare = EngineProfile(precision="float16")
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


def video_recipe(**size) -> EngineProfile:
    return EngineProfile.model_validate(
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
    pytest.importorskip("diffusers")
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


def test_configuration_of_the_file_counts():
    pytest.importorskip("diffusers")
    config = '{"num_layers": 1, "text_embed_dim": 32, "max_text_seq_length": 16, '
    config += '"use_rotary_positional_embeddings": true}'
    inputs = (GraphTensor("encoder_hidden_states", "float16", ("batch", "text", 32)),)
    file = onnx_file(*COGVIDEOX[:1], *inputs, *COGVIDEOX[2:], config=config)
    size = {"frames": 9, "height": 64, "width": 96, "batch": 2}
    shapes = resolve_profiles(video_recipe(**size), file)["clip"]
    assert shapes["encoder_hidden_states"].opt == (2, 16, 32)


def test_clip_the_model_does_not_make():
    pytest.importorskip("diffusers")
    size = {"frames": 48, "height": 480, "width": 720, "batch": 2}
    with pytest.raises(InvalidInputError, match=r"'clip'.*frames=48"):
        resolve_profiles(video_recipe(**size), onnx_file(*COGVIDEOX))
