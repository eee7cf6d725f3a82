"""Exported tiny OpenSoraPlan and Allegro against the PyTorch model; their graphs; their parsing."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from test_exported_models import TOLERANCE
from test_tensorrt_parser import parse

from helpers.built_engines import built_for_rtx
from rainfusion_trt.models import VideoSize

NAME = "opensoraplan-1.2"


def relative_error(exported, size: VideoSize, *, batch: int, text_tokens: int = 512) -> float:
    """Largest difference between ONNX Runtime and PyTorch over the largest value."""
    model, transformer = exported.model, exported.transformer
    inputs = model.example_inputs(transformer, size, batch=batch, seed=size.width)
    inputs["timestep"] = 999.0 - 333.3 * torch.arange(batch)  # another one per element
    for name in ("encoder_hidden_states", "encoder_attention_mask"):
        inputs[name] = inputs[name][:, :text_tokens].contiguous()
    with torch.no_grad():
        expected = transformer(**model.forward_kwargs(inputs)).sample
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    assert actual.shape == tuple(expected.shape)
    return float((torch.from_numpy(actual) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", [NAME, "allegro"])
def test_fixed_export_equals_pytorch(exported, name):
    fixed = exported(name, layers=1)
    assert relative_error(fixed, fixed.model.tiny_size, batch=2) <= TOLERANCE


@pytest.mark.parametrize(
    ("size", "batch", "text_tokens"),
    [
        (VideoSize(5, 48, 80), 1, 512),
        (VideoSize(16, 80, 64), 3, 200),
        (VideoSize(29, 128, 128), 1, 512),  # 512 video tokens, as many as of text
    ],
    ids=str,
)
def test_dynamic_export_equals_pytorch_at_unseen_sizes(exported, size, batch, text_tokens):
    dynamic = exported(NAME, dynamic=True)
    assert relative_error(dynamic, size, batch=batch, text_tokens=text_tokens) <= TOLERANCE


def test_inputs_and_their_axes(exported):
    graph = onnx.load(exported(NAME, dynamic=True).path).graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in graph.input
    }
    assert shapes == {
        "hidden_states": ["batch", 4, "frames", "height", "width"],
        "encoder_hidden_states": ["batch", "text_tokens", 32],
        "encoder_attention_mask": ["batch", "text_tokens"],
        "timestep": ["batch"],
        "rotary_cos": ["video_tokens", 96],
        "rotary_sin": ["video_tokens", 96],
        "sparsity": [1],
    }


def test_self_attention_alone_is_replaced(exported):
    graph = onnx.load(exported(NAME, dynamic=True).path).graph
    nodes = [n for n in graph.node if n.op_type == "RainFusionAttention"]
    assert [n.name for n in nodes] == [
        f"transformer_blocks.{i}.attn1/RainFusionAttention" for i in range(2)
    ]
    for node in nodes:
        (text,) = [a.s for a in node.attribute if a.name == "text"]
        assert text == b"none" and len(node.input) == 5  # no kv_len
    cross = [n.name for n in graph.node if n.op_type == "Softmax"]
    assert cross == [f"transformer_blocks.{i}.attn2/Softmax" for i in range(2)]


@pytest.mark.parametrize("dynamic", [False, True])
def test_graph_has_no_operator_that_runs_badly(exported, dynamic):
    """Whole rotary tables are read as they are; squeezes of the token axis are gone."""
    file = exported(NAME, dynamic=True) if dynamic else exported(NAME, layers=1)
    graph = onnx.load(file.path).graph
    operators = {n.op_type for n in graph.node}
    assert not operators & {"ScatterND", "ScatterElements", "NonZero", "If", "Loop", "Range"}
    shapes = {n.output[0] for n in graph.node if n.op_type == "Shape"}
    gathers = [n for n in graph.node if n.op_type == "Gather" and n.input[0] not in shapes]
    # The token grid alone: element 0 of batch and channels, of which only the shape is read.
    assert len(gathers) == 2 and gathers[0].input[0] == "hidden_states"
    types = {v.type.tensor_type.elem_type for v in graph.value_info}
    kinds = onnx.TensorProto
    assert not types & {kinds.DOUBLE, kinds.COMPLEX64, kinds.COMPLEX128}


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.rehearsal)],
    ids=str,
)
def test_attention_stays_in_16_bit(exported, dtype):
    half = exported(NAME, dtype, dynamic=dtype is torch.float16, layers=1)
    model = onnx.shape_inference.infer_shapes(onnx.load(half.path))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    (node,) = [n for n in model.graph.node if n.op_type == "RainFusionAttention"]
    expected = onnx.TensorProto.BFLOAT16 if dtype is torch.bfloat16 else onnx.TensorProto.FLOAT16
    assert [types[name] for name in node.input[:3]] == [expected] * 3


@pytest.mark.tensorrt
def test_parser_makes_attention_a_plugin_layer(exported, plugin_library):
    file = exported(NAME, torch.bfloat16, layers=1)
    network = parse(file.path, plugin_library)
    assert network["errors"] == []
    assert network["plugins"] == ["transformer_blocks.0.attn1/RainFusionAttention"]
    assert {"rotary_cos", "encoder_attention_mask", "sparsity"} <= set(network["inputs"])


@pytest.mark.tensorrt
def test_tensorrt_builds_an_engine_of_two_sizes(exported, plugin_library, tmp_path):
    file = exported(NAME, torch.float16, dynamic=True, layers=1)
    built = built_for_rtx(
        file.path,
        plugin_library,
        tmp_path / "e",
        model=NAME,
        precision="float16",
        sizes={
            "small": {"frames": 9, "height": 64, "width": 96, "batch": 2},
            "large": {"frames": 29, "height": 128, "width": 192, "batch": 2},
        },
    )
    assert built.plugin_layers == 1 and built.model == NAME
    assert {i.name: i.dtype for i in built.inputs} == {
        "hidden_states": "float16",
        "encoder_hidden_states": "float16",
        "encoder_attention_mask": "int64",
        "timestep": "float32",
        "rotary_cos": "float32",
        "rotary_sin": "float32",
        "sparsity": "float32",
    }
