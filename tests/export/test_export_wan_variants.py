"""Exported tiny Wan models with images, controls, poses and faces: PyTorch, recipes, TensorRT."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from helpers.built_engines import built_for_rtx
from helpers.export_fixtures import Exported
from rainfusion_trt.engine.onnx_file import OnnxFile
from rainfusion_trt.engine.recipe import load_recipe
from rainfusion_trt.engine.shapes import resolve_profiles
from rainfusion_trt.graph_file import GraphAccount, GraphTensor
from rainfusion_trt.models import VideoSize, get_model

# One of each kind of inputs: embeddings of images, the control branch, poses and faces. The image
# of Wan 2.2 I2V-A14B is in channels, whose graph is that of text to video. Values are layers: two
# where each has a scale of its own.
KINDS = {"wan2.1-flf2v-14b": 1, "wan2.1-vace-1.3b": 2, "wan2.2-animate-14b": 1}
SIZES = ((VideoSize(5, 64, 96), 1), (VideoSize(17, 96, 160), 2))  # neither is what was traced

# As in test_exported_models.py: two float32 programs that order sums differently.
TOLERANCE = 1e-4


def relative_error(exported: Exported, size: VideoSize, batch: int) -> float:
    """Largest difference between ONNX Runtime and PyTorch over the largest value."""
    model, transformer = exported.model, exported.transformer
    inputs = model.example_inputs(transformer, size, batch=batch, seed=size.width)
    inputs["timestep"] = torch.linspace(20.5, 990.0, batch)
    if "control_hidden_states_scale" in inputs:
        count = len(inputs["control_hidden_states_scale"])
        inputs["control_hidden_states_scale"] = torch.linspace(0.5, 1.5, count)
    with torch.no_grad():
        expected = transformer(**model.forward_kwargs(inputs)).sample
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    assert actual.shape == tuple(expected.shape)
    return float((torch.from_numpy(actual) - expected).abs().max() / expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_one_graph_equals_pytorch_at_unseen_sizes(exported, name):
    dynamic = exported(name, dynamic=True, layers=KINDS[name])
    for size, batch in SIZES:
        assert relative_error(dynamic, size, batch) <= TOLERANCE
    graph = onnx.load(dynamic.path).graph
    nodes = [n.name for n in graph.node if n.op_type == "RainFusionAttention"]
    branches = ["vace_blocks", "blocks"] if "vace" in name else ["blocks"]
    assert nodes == [
        f"{branch}.{layer}.attn1/RainFusionAttention"
        for branch in branches
        for layer in range(KINDS[name])
    ]
    names = [given.name for given in dynamic.model.inputs]
    assert [value.name for value in graph.input] == [*names, "sparsity"]


@pytest.mark.slow
@pytest.mark.tensorrt
@pytest.mark.parametrize("name", list(KINDS))
def test_tensorrt_builds_it_with_every_attention_a_plugin_layer(
    exported, plugin_library, tmp_path, name
):
    file = exported(name, torch.float16, layers=1)
    built = built_for_rtx(
        file.path, plugin_library, tmp_path / "e", model=name, precision="float16", target=["sm80"]
    )
    assert built.plugin_layers == file.report.facts.attentions and built.model == name
    assert [i.name for i in built.inputs] == [g.name for g in file.model.inputs] + ["sparsity"]


# Latents of the recipe's clips, by its names.
HIGH, LOW = (1, 36, 21, 90, 160), (1, 36, 21, 60, 104)
IMAGE = {"720p": HIGH, "480p": LOW}
RECIPES = {
    "wan2.1-i2v-14b": IMAGE,
    "wan2.1-flf2v-14b": IMAGE,
    "wan2.2-i2v-a14b": IMAGE,
    "wan2.2-animate-14b": IMAGE,
    "wan2.1-vace-1.3b": {
        "480p": (1, 16, 21, 60, 104),
        "480p_reference": (1, 16, 22, 60, 104),
    },
    "wan2.1-vace-14b": {
        "720p": (1, 16, 21, 90, 160),
        "720p_reference": (1, 16, 22, 90, 160),
        "480p": (1, 16, 21, 60, 104),
        "480p_reference": (1, 16, 22, 60, 104),
    },
}
OTHERS = {  # at the first size
    "timestep": (1,),
    "encoder_hidden_states": (1, 512, 4096),
    "sparsity": (1,),
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_have_the_sizes_that_people_use(name):
    """On files whose axes have no names and no numbers."""
    model = get_model(name)
    inputs = [GraphTensor(g.name, "bfloat16", (None,) * len(g.axes)) for g in model.inputs]
    inputs.append(GraphTensor("sparsity", "float32", (1,)))
    account = GraphAccount(dtype="bfloat16", config=json.loads(json.dumps(model.config())))
    file = OnnxFile(Path("m.onnx"), (), tuple(inputs), (), ("attn",), (), account)
    recipe = load_recipe(Path(__file__).parents[2] / f"engines/{name}.yaml")
    shapes = resolve_profiles(recipe, file)
    assert {key: value["hidden_states"].opt for key, value in shapes.items()} == RECIPES[name]
    first = {key: value.opt for key, value in next(iter(shapes.values())).items()}
    expected = {"hidden_states": next(iter(RECIPES[name].values())), **OTHERS}
    if name in ("wan2.1-i2v-14b", "wan2.2-animate-14b"):
        expected["encoder_hidden_states_image"] = (1, 257, 1280)
    if name == "wan2.1-flf2v-14b":
        expected["encoder_hidden_states_image"] = (1, 514, 1280)
    if name == "wan2.2-animate-14b":
        expected["pose_hidden_states"] = (1, 16, 20, 90, 160)
        expected["face_pixel_values"] = (1, 3, 77, 512, 512)
    if "vace" in name:
        expected["control_hidden_states"] = (1, 96, *expected["hidden_states"][2:])
        expected["control_hidden_states_scale"] = (15 if "1.3b" in name else 8,)
    assert first == expected
