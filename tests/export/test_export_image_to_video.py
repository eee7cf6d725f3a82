"""Exported graphs of models that take an image, against PyTorch, and built by TensorRT."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch

from helpers.built_engines import built_for_rtx
from helpers.export_fixtures import Exported
from rainfusion_trt.export import export_model
from rainfusion_trt.models import VideoSize, get_model

# Two float32 programs that order sums differently; a wrong graph is off by more than 1e-2.
TOLERANCE = 1e-4
SMALL, LARGE = VideoSize(5, 48, 80), VideoSize(17, 80, 64)  # neither is what was traced
# Where the image changes more than channels and vectors, the graph is one of varying shapes. The
# others' graphs are those of text to video, which other tests compare at many sizes.
DYNAMIC = ("hunyuanvideo-i2v", "hunyuanvideo-1.5-i2v-step-distilled")
FIXED = ("cogvideox1.5-5b-i2v", "hunyuanvideo-i2v-33ch")


def relative_error(exported: Exported, size: VideoSize, batch: int, **given: float) -> float:
    """Largest difference between ONNX Runtime and PyTorch over the largest value.

    Images are random numbers, prompts have lengths of their own; `given` multiplies inputs.
    """
    model, transformer = exported.model, exported.transformer
    inputs = model.example_inputs(transformer, size, batch=batch, seed=size.width)
    inputs["timestep"] = torch.linspace(100.5, 900.0, batch)  # another one per element
    for name, factor in given.items():
        inputs[name] = inputs[name] * factor
    with torch.no_grad():
        expected = transformer(**model.forward_kwargs(inputs)).sample
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    assert actual.shape == tuple(expected.shape)
    return float((torch.from_numpy(actual) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_export_equals_pytorch_at_unseen_sizes(exported, name):
    dynamic = exported(name, dynamic=True, layers=1)
    for size, batch in ((SMALL, 1), (LARGE, 3), (dynamic.model.tiny_size, 2)):
        assert relative_error(dynamic, size, batch) <= TOLERANCE, size


@pytest.mark.parametrize("name", FIXED)
def test_fixed_export_equals_pytorch(exported, name):
    fixed = exported(name, layers=1)
    batch = 2 if fixed.model.guidance_batch else 1
    assert relative_error(fixed, fixed.model.tiny_size, batch) <= TOLERANCE


def test_a_graph_from_an_image_also_runs_without(exported):
    dynamic = exported("hunyuanvideo-1.5-i2v-step-distilled", dynamic=True, layers=1)
    assert relative_error(dynamic, SMALL, 2, image_embeds=0.0) <= TOLERANCE


def test_a_learned_position_table_is_in_the_graph(tmp_path):
    model = get_model("cogvideox-5b-i2v")
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32, seed=3)
    table = torch.randn(transformer.patch_embed.pos_embedding.shape)
    transformer.patch_embed.pos_embedding = table
    report = export_model(model, transformer, model.tiny_size, output=tmp_path / "m.onnx")
    assert relative_error(Exported(model, transformer, report), model.tiny_size, 2) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("cogvideox1.5-5b-i2v", ["ofs"]),
        ("hunyuanvideo-i2v", ["guidance"]),
        ("hunyuanvideo-i2v-33ch", []),
        ("hunyuanvideo-1.5-i2v-step-distilled", ["image_embeds", "timestep_r"]),
    ],
)
def test_graph_inputs_are_the_pipelines(exported, name, added):
    file = exported(name, dynamic=name in DYNAMIC, layers=1)
    graph = onnx.load(file.path).graph
    inputs = [value.name for value in graph.input]
    assert inputs == [*(given.name for given in file.model.inputs), "sparsity"]
    known = {"ofs", "guidance", "image_embeds", "timestep_r"}
    assert [key for key in inputs if key in known] == added
    nodes = [n for n in graph.node if n.op_type == "RainFusionAttention"]
    assert len(nodes) == file.model.attention_count(file.transformer.config)
    channels = file.transformer.config.in_channels
    assert channels in [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]


@pytest.mark.tensorrt
@pytest.mark.parametrize("name", ["hunyuanvideo-i2v", "hunyuanvideo-1.5-i2v"])
def test_tensorrt_builds_it_with_every_attention_a_plugin_layer(
    exported, plugin_library, tmp_path, name
):
    """The graphs whose operators differ from those of text to video."""
    file = exported(name, torch.bfloat16, layers=1)
    built = built_for_rtx(
        file.path, plugin_library, tmp_path / "e", model=name, precision="bfloat16"
    )
    assert built.plugin_layers == file.report.facts.attentions
    names = [given.name for given in file.model.inputs]
    assert [i.name for i in built.inputs] == [*names, "sparsity"]
