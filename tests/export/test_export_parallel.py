"""Graphs for several GPUs: alone in ONNX Runtime, and by threads that exchange tokens."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from helpers.export_fixtures import Exported
from helpers.shared_graph import Gpus
from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.export import export_model
from rainfusion_trt.graph_file import read_onnx
from rainfusion_trt.models import VideoSize, get_model, model_names

# As in test_exported_models.py: two float32 programs that order sums differently.
TOLERANCE = 1e-4
# Name, whether the sizes vary, and a clip that was not traced where they do.
GRAPHS = {
    "wan2.2-ti2v-5b": VideoSize(9, 96, 224),
    "hunyuanvideo": None,
    "cogvideox-5b": None,
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Name of a model -> a tiny random one, and its file for several GPUs."""
    made: dict[str, Exported] = {}
    folder = tmp_path_factory.mktemp("shared")

    def export(name: str) -> Exported:
        if name not in made:
            model = get_model(name)
            config = model.config("tiny", layers=1)
            transformer = model.create(config, dtype=torch.float32, seed=3)
            report = export_model(
                model,
                transformer,
                model.tiny_size,
                output=folder / f"{name}.onnx",
                dynamic=GRAPHS[name] is not None,
                parallel=True,
            )
            made[name] = Exported(model, transformer, report)
        return made[name]

    return export


def call(exported: Exported) -> tuple[dict[str, np.ndarray], int, np.ndarray]:
    """Graph inputs without a part, the tokens of the video, and what PyTorch gives."""
    model, transformer = exported.model, exported.transformer
    dynamic = read_onnx(exported.path).account.dynamic
    size = (GRAPHS.get(model.name) if dynamic else None) or model.tiny_size
    batch = 2 if model.guidance_batch else 1
    inputs = model.example_inputs(transformer, size, batch=batch, seed=7)
    timestep = inputs["timestep"]  # another one per element and token
    inputs["timestep"] = torch.linspace(20.5, 990.0, timestep.numel()).reshape(timestep.shape)
    kwargs = model.forward_kwargs(inputs)
    with torch.no_grad():
        expected = model.eager(transformer, kwargs)[0]
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    feed["sparsity"] = np.zeros(1, np.float32)
    return feed, math.prod(model.grid_shape(transformer, kwargs)), expected.numpy()


def error_of(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", GRAPHS)
def test_on_one_gpu_it_is_the_model(shared, name):
    exported = shared(name)
    feed, tokens, expected = call(exported)
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    (actual,) = session.run(["sample"], {**feed, "part": np.zeros(tokens, np.float32)})
    assert error_of(actual, expected) <= TOLERANCE


@pytest.mark.parametrize("name", GRAPHS)
def test_on_several_gpus_it_is_the_model(shared, name):
    """Parts of unequal length, and the text on every one."""
    exported = shared(name)
    feed, tokens, expected = call(exported)
    for parts in (2, 5):
        assert tokens % 5
        for actual in Gpus(parts).run(exported.path, feed, tokens):
            assert error_of(actual, expected) <= TOLERANCE


@pytest.mark.rehearsal
@pytest.mark.parametrize("name", [n for n in model_names() if get_model(n).token_cuts])
def test_every_model_that_is_cut(tmp_path, name):
    model = get_model(name)
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32, seed=3)
    size, component = model.tiny_size, model.components[0]
    path = tmp_path / "m.onnx"
    report = export_model(model, transformer, size, output=path, component=component, parallel=True)
    exported = Exported(model, transformer, report)
    feed, tokens, expected = call(exported)
    for parts in (2, 5):
        for actual in Gpus(parts).run(path, feed, tokens):
            assert error_of(actual, expected) <= TOLERANCE


def test_what_the_file_says(shared):
    exported = shared("wan2.2-ti2v-5b")
    file = read_onnx(exported.path)
    assert file.account.parallel and file.account.dynamic
    assert next(t for t in file.inputs if t.name == "part").shape == ("part_tokens",)
    assert read_onnx(shared("hunyuanvideo").path).account.dynamic is False
    nodes = [n for n in file.proto.graph.node if n.domain == "rainfusion"]
    kinds = [n.op_type.removeprefix("RainFusion") for n in nodes]
    assert kinds == ["Split"] * 4 + ["Attention", "Gather"]  # timesteps, tokens, cos and sin
    (parallel,) = [a.i for n in nodes for a in n.attribute if a.name == "parallel"]
    assert parallel == 1
    for node in nodes:
        assert {"plugin_namespace", "plugin_version"} <= {a.name for a in node.attribute}


def test_models_that_cannot_be_cut_are_refused(tmp_path):
    known = [get_model(name) for name in model_names()]
    without = [m for m in known if m.token_cuts is None]
    assert {"wan2.2-animate-14b", "hunyuanvideo-i2v", "ltx-video-2b"} <= {m.name for m in without}
    model = get_model("hunyuanvideo-i2v")
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    with pytest.raises(UnsupportedError, match="hunyuanvideo-i2v has no graph for several GPUs"):
        export_model(model, transformer, model.tiny_size, output=tmp_path / "m.onnx", parallel=True)


def test_a_graph_for_one_gpu_has_none_of_it(exported):
    graph = onnx.load(exported("wan2.1-1.3b", layers=1).path)
    attributes = {a.name for n in graph.graph.node for a in n.attribute}
    assert "parallel" not in attributes and len(graph.functions) == 1
    assert "rainfusion.parallel" not in {entry.key for entry in graph.metadata_props}
