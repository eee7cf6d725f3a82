"""Exported tiny models against the PyTorch models they came from."""

from __future__ import annotations

import json

import onnx
import onnxruntime
import pytest
import torch

from helpers.export_fixtures import Exported
from rainfusion_trt.export import export_model
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.operator.settings import AttentionSettings

# Two float32 programs that order sums differently: a few hundred rounding errors of 6e-8 through
# two layers stay below 2e-5; a wrong graph is off by more than 1e-2.
TOLERANCE = 1e-4


def relative_error(exported, size: VideoSize, batch: int) -> float:
    """Largest difference between ONNX Runtime and PyTorch over the largest value."""
    model, transformer = exported.model, exported.transformer
    inputs = model.example_inputs(transformer, size, batch=batch, seed=size.width)
    steps = torch.arange(100, 100 + 300 * batch, 300)  # another one per element
    inputs["timestep"] = steps.to(inputs["timestep"].dtype)
    with torch.no_grad():
        expected = transformer(**model.forward_kwargs(inputs)).sample
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    assert actual.shape == tuple(expected.shape)
    return float((torch.from_numpy(actual) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ["cogvideox-2b", "cogvideox-5b", "cogvideox1.5-5b"])
def test_fixed_export_equals_pytorch(exported, name):
    fixed = exported(name, layers=1)
    assert relative_error(fixed, fixed.model.tiny_size, batch=2) <= TOLERANCE


def test_baked_position_table_of_another_size(tmp_path):
    model = get_model("cogvideox-2b")
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    size = VideoSize(13, 48, 80)  # not what its configuration says
    inputs = model.example_inputs(transformer, size, batch=2)
    with torch.no_grad():
        before = transformer(**model.forward_kwargs(inputs)).sample
    report = export_model(model, transformer, size, output=tmp_path / "m.onnx")
    assert relative_error(Exported(model, transformer, report), size, 2) <= TOLERANCE
    with torch.no_grad():
        assert torch.equal(transformer(**model.forward_kwargs(inputs)).sample, before)


@pytest.mark.parametrize("size", [VideoSize(5, 48, 80), VideoSize(17, 80, 64)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_dynamic_export_equals_pytorch_at_unseen_sizes(exported, size, batch):
    dynamic = exported("cogvideox-5b", dynamic=True)
    assert relative_error(dynamic, size, batch) <= TOLERANCE


def test_dynamic_export_with_patches_in_time(exported):
    dynamic = exported("cogvideox1.5-5b", dynamic=True, layers=1)
    assert relative_error(dynamic, VideoSize(17, 48, 80), 1) <= TOLERANCE


def test_graph_is_what_the_runtime_expects(exported):
    dynamic = exported("cogvideox-5b", dynamic=True)
    model = onnx.load(dynamic.path)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    assert list(shapes) == [
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "rotary_cos",
        "rotary_sin",
        "sparsity",
    ]
    assert shapes["hidden_states"] == ["batch", "frames", 16, "height", "width"]
    assert shapes["encoder_hidden_states"] == ["batch", "text_tokens", 32]
    assert shapes["rotary_cos"] == shapes["rotary_sin"] == ["video_tokens", 64]
    assert shapes["sparsity"] == [1]
    assert [value.name for value in model.graph.output] == ["sample"]
    assert {o.domain: o.version for o in model.opset_import} == {"": 20, "rainfusion": 1}


def test_metadata_tells_what_the_file_is(exported):
    report = exported("cogvideox-5b", dynamic=True).report
    model = onnx.load(report.path)
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["rainfusion.model"] == "cogvideox-5b"
    assert properties["rainfusion.size"] == "9x64x96"
    assert properties["rainfusion.dtype"] == "float32"
    assert properties["rainfusion.dynamic"] == "true"
    assert json.loads(properties["rainfusion.config"])["num_layers"] == 2
    assert json.loads(properties["rainfusion.settings"]) == AttentionSettings().record()
    assert properties["rainfusion.attention_nodes"] == "2"
    assert report.facts.attentions == 2


def test_attention_nodes_carry_their_attributes_and_names(exported):
    model = onnx.load(exported("cogvideox-5b", dynamic=True).path)
    nodes = [n for n in model.graph.node if n.op_type == "RainFusionAttention"]
    assert [n.name for n in nodes] == [
        f"transformer_blocks.{i}.attn1/RainFusionAttention" for i in range(2)
    ]
    for node in nodes:
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert values.pop("alpha") == pytest.approx(0.9)
        assert values == {
            "text": b"first",
            "method": AttentionSettings.method.encode(),
            "sink_frames": 1,
            "scale": 0.0,
            "plugin_namespace": b"rainfusion",
            "plugin_version": b"1",
        }


def test_weights_keep_the_names_of_the_parameters(exported):
    dynamic = exported("cogvideox-5b", dynamic=True)
    model = onnx.load(dynamic.path)
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    for name, parameter in dynamic.transformer.named_parameters():
        if f"{name}.T" in weights:
            stored = torch.from_numpy(weights[f"{name}.T"].copy()).T
        else:
            stored = torch.from_numpy(weights[name].copy())
        assert torch.equal(stored, parameter), name


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.rehearsal)],
    ids=str,
)
def test_attention_stays_in_16_bit(exported, dtype):
    dynamic = dtype is torch.float16
    half = exported("cogvideox-5b", dtype, dynamic=dynamic, layers=1)
    model = onnx.shape_inference.infer_shapes(onnx.load(half.path))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    (node,) = [n for n in model.graph.node if n.op_type == "RainFusionAttention"]
    expected = onnx.TensorProto.BFLOAT16 if dtype is torch.bfloat16 else onnx.TensorProto.FLOAT16
    assert [types[name] for name in node.input[:3]] == [expected] * 3


def test_file_says_nothing_of_the_machine_it_was_made_on(exported):
    model = onnx.load(exported("cogvideox-5b", dynamic=True).path)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    content = model.SerializeToString()
    assert b"packages" not in content and b".py" not in content


def test_grid_reaches_the_node_as_the_token_grid(exported):
    """Frames after patching, rows and columns of patches: 9x64x96 gives 3x4x6, and 2x4x6."""
    for name, grid in (("cogvideox-5b", [3, 4, 6]), ("cogvideox1.5-5b", [2, 4, 6])):
        model = onnx.shape_inference.infer_shapes(onnx.load(exported(name, layers=1).path))
        shapes = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in model.graph.value_info
        }
        (node,) = [n for n in model.graph.node if n.op_type == "RainFusionAttention"]
        assert shapes[node.input[3]] == grid
        tokens = shapes[node.input[0]][2]
        text = get_model(name).config("tiny")["max_text_seq_length"]
        assert tokens == grid[0] * grid[1] * grid[2] + text
