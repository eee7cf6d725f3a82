"""Exported tiny Wan models against PyTorch, and built by TensorRT."""

from __future__ import annotations

from dataclasses import astuple

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from helpers.built_engines import built_for_rtx
from helpers.export_fixtures import Exported
from helpers.wan_pipeline import tiny_pipeline
from rainfusion_trt import Pipeline
from rainfusion_trt.models import VideoSize

DYNAMIC = {"wan2.1-14b": 2, "wan2.2-ti2v-5b": 1}  # layers of the graphs with varying shapes
SMALL, LARGE = VideoSize(5, 64, 96), VideoSize(17, 96, 160)  # neither is what was traced

# As in test_exported_models.py: two float32 programs that order sums differently.
TOLERANCE = 1e-4


def relative_error(exported: Exported, size: VideoSize, batch: int, text_tokens: int) -> float:
    """Largest difference between ONNX Runtime and PyTorch over the largest value."""
    model, transformer = exported.model, exported.transformer
    inputs = model.example_inputs(transformer, size, batch=batch, seed=size.width)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"][:, :text_tokens].contiguous()
    timestep = inputs["timestep"]  # another one per element (and token), with a fraction
    inputs["timestep"] = torch.linspace(20.5, 990.0, timestep.numel()).reshape(timestep.shape)
    with torch.no_grad():
        expected = transformer(**model.forward_kwargs(inputs)).sample
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    assert actual.shape == tuple(expected.shape)
    return float((torch.from_numpy(actual) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "wan2.2-ti2v-5b"])
def test_fixed_export_equals_pytorch(exported, name):
    fixed = exported(name, layers=1)
    assert relative_error(fixed, fixed.model.tiny_size, 1, 512) <= TOLERANCE


@pytest.mark.parametrize(("size", "batch", "text"), [(SMALL, 1, 100), (LARGE, 3, 512)], ids=str)
@pytest.mark.parametrize("name", list(DYNAMIC))
def test_dynamic_export_equals_pytorch_at_unseen_sizes(exported, name, size, batch, text):
    dynamic = exported(name, dynamic=True, layers=DYNAMIC[name])
    assert relative_error(dynamic, size, batch, text) <= TOLERANCE


@pytest.mark.parametrize("name", list(DYNAMIC))
def test_only_self_attention_is_the_operator(exported, name):
    dynamic = exported(name, dynamic=True, layers=DYNAMIC[name])
    model, blocks = onnx.load(dynamic.path), range(DYNAMIC[name])
    nodes = [n for n in model.graph.node if n.op_type == "RainFusionAttention"]
    assert [n.name for n in nodes] == [f"blocks.{i}.attn1/RainFusionAttention" for i in blocks]
    assert dynamic.report.facts.attentions == dynamic.model.attention_count(
        dynamic.transformer.config
    )
    for node in nodes:
        text = next(a for a in node.attribute if a.name == "text")
        assert text.s == b"none" and len(node.input) == 5
    softmax = [n.name for n in model.graph.node if n.op_type == "Softmax"]
    assert softmax == [f"blocks.{i}.attn2/Softmax" for i in blocks]


def test_graph_is_what_the_runtime_expects(exported):
    for name, tokens in (("wan2.1-14b", ["batch"]), ("wan2.2-ti2v-5b", ["batch", "video_tokens"])):
        dynamic = exported(name, dynamic=True, layers=DYNAMIC[name])
        shapes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in onnx.load(dynamic.path).graph.input
        }
        channels = dynamic.transformer.config.in_channels
        assert shapes == {
            "hidden_states": ["batch", channels, "frames", "height", "width"],
            "timestep": tokens,
            "encoder_hidden_states": ["batch", "text_tokens", 32],
            "sparsity": [1],
        }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attention_gets_16_bit_and_the_modulation_stays_float32(exported, dtype):
    half = exported("wan2.1-1.3b", dtype, layers=1)
    model = onnx.shape_inference.infer_shapes(onnx.load(half.path))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    (node,) = [n for n in model.graph.node if n.op_type == "RainFusionAttention"]
    expected = TensorProto.BFLOAT16 if dtype is torch.bfloat16 else TensorProto.FLOAT16
    assert [types[name] for name in node.input[:3]] == [expected] * 3
    weights = {w.name: w.data_type for w in model.graph.initializer}
    assert weights["scale_shift_table"] == weights["blocks.0.scale_shift_table"] == 1
    assert weights["blocks.0.attn1.to_q.weight.T"] == expected


def test_grid_reaches_the_node_as_the_token_grid(exported):
    for name in ("wan2.1-1.3b", "wan2.2-ti2v-5b"):  # 9x64x96 by 8, 9x128x192 by 16: 3x4x6 tokens
        model = onnx.shape_inference.infer_shapes(onnx.load(exported(name, layers=1).path))
        shapes = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in model.graph.value_info
        }
        (node,) = [n for n in model.graph.node if n.op_type == "RainFusionAttention"]
        assert shapes[node.input[3]] == [3, 4, 6]
        assert shapes[node.input[0]] == [1, 2, 72, 128]


def test_pipeline_runs_the_file_in_place_of_the_transformer(exported):
    """Guidance by two calls of the graph, whose first result must outlive the second."""
    fixed = exported("wan2.1-1.3b", layers=1)
    pipe = tiny_pipeline(fixed.transformer)
    call = {"prompt": "a fox", "num_inference_steps": 2, "output_type": "latent"}
    frames, height, width = astuple(fixed.model.tiny_size)
    expected = pipe(
        **call,
        num_frames=frames,
        height=height,
        width=width,
        generator=torch.Generator().manual_seed(0),
    ).frames
    with Pipeline(
        pipe=pipe, onnx=fixed.path, backend="onnxruntime", sparsity=0.0, device="cpu"
    ) as pipeline:
        actual = pipeline(**call, seed=0).frames
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)  # guidance times 1e-6


# Name, dtype, whether the shapes vary, and the sizes of the recipe.
ENGINES = [
    pytest.param("wan2.1-1.3b", torch.bfloat16, False, {}, id="wan2.1-1.3b"),
    pytest.param("wan2.1-14b", torch.float16, False, {}, id="wan2.1-14b"),
    pytest.param(
        "wan2.2-ti2v-5b",
        torch.float16,
        True,
        {
            "small": {"frames": 9, "height": 64, "width": 96, "batch": 1},
            "large": {"frames": 17, "height": 128, "width": 192, "batch": 1},
        },
        id="wan2.2-ti2v-5b of two sizes",
    ),
]


@pytest.mark.tensorrt
@pytest.mark.parametrize(("name", "dtype", "dynamic", "sizes"), ENGINES)
def test_tensorrt_builds_it_with_every_attention_a_plugin_layer(
    exported, plugin_library, tmp_path, name, dtype, dynamic, sizes
):
    precision = str(dtype).removeprefix("torch.")
    file = exported(name, dtype, dynamic=dynamic, layers=1)
    built = built_for_rtx(
        file.path, plugin_library, tmp_path / "e", model=name, precision=precision, sizes=sizes
    )
    assert built.plugin_layers == 1 and built.model == name
    assert {i.name: i.dtype for i in built.inputs} == {
        "hidden_states": precision,
        "timestep": "float32",
        "encoder_hidden_states": precision,
        "sparsity": "float32",
    }
