"""`check_model` on small graphs, each wrong in one way."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from rainfusion_trt.errors import ExportError, InvalidInputError
from rainfusion_trt.export import check_model, operator

ATTRIBUTES = {
    "text": "none",
    "method": "rainfusion",
    "alpha": 0.9,
    "sink_frames": 1,
    "scale": 0.0,
    **operator.PLUGIN_ATTRIBUTES,
}
SHAPE = [1, 2, 8, 64]


def attention(name="blocks.0/attention", **changes):
    inputs = ["q", "q", "q", "grid", "sparsity"]
    attributes = {k: v for k, v in {**ATTRIBUTES, **changes}.items() if v is not None}
    return helper.make_node(
        operator.OP_TYPE, inputs, ["out"], name, domain=operator.DOMAIN, **attributes
    )


def save(path, node, *, extra=(), values=(), count=1, dtype="float16", function=True):
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["q"], "copy"), node, *extra],
        "test",
        [
            helper.make_tensor_value_info("x", half, SHAPE),
            helper.make_tensor_value_info("grid", half, [2, 2, 2]),
            helper.make_tensor_value_info("sparsity", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("out", half, SHAPE)],
        value_info=[helper.make_tensor_value_info("q", half, SHAPE), *values],
    )
    body = ir.serde.serialize_function(operator.dense_function(kv_len=False))
    model = helper.make_model(
        graph,
        functions=[body] if function else [],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(operator.DOMAIN, 1)],
        ir_version=10,
    )
    properties = {"rainfusion.dtype": dtype, "rainfusion.attention_nodes": str(count)}
    helper.set_model_props(model, properties)
    onnx.save(model, path)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def test_good_file_passes(path):
    facts = check_model(save(path, attention()))
    assert (facts.nodes, facts.attentions) == (2, 1)
    assert facts.operators == {"Identity": 1, "RainFusionAttention": 1}


@pytest.mark.parametrize("name", list(ATTRIBUTES))
def test_missing_attribute_is_named_with_its_node(path, name):
    with pytest.raises(ExportError, match=f"'blocks.0/attention' lacks the attribute {name}"):
        check_model(save(path, attention(**{name: None})))


def test_foreign_namespace(path):
    with pytest.raises(ExportError, match="plugin_namespace='other'"):
        check_model(save(path, attention(plugin_namespace="other")))


def test_missing_body(path):
    with pytest.raises(ExportError, match="no local function|No Op registered"):
        check_model(save(path, attention(), function=False))


def test_missing_nodes(path):
    with pytest.raises(ExportError, match=r"has 1 .* says 42"):
        check_model(save(path, attention(), count=42))


def test_float32_island_before_attention(path):
    with pytest.raises(ExportError, match="cast it back"):
        check_model(save(path, attention(), dtype="bfloat16"))


def test_forbidden_operator_is_named_with_its_node(path):
    extra = [helper.make_node("NonZero", ["q"], ["indices"], "blocks.0/NonZero")]
    with pytest.raises(ExportError, match="'blocks.0/NonZero' is NonZero"):
        check_model(save(path, attention(), extra=extra))


def test_a_scatter_is_allowed_for_a_list_of_numbers_alone(path):
    rows = helper.make_tensor_value_info("rows", TensorProto.INT64, [8])
    extra = [
        helper.make_node("Shape", ["q"], ["numbers"]),
        helper.make_node("ScatterElements", ["numbers"] * 3, ["rows"], "Scatter"),
    ]
    assert check_model(save(path, attention(), extra=extra, values=[rows])).attentions == 1
    extra = [helper.make_node("ScatterElements", ["q", "numbers", "q"], ["wide"], "Scatter")]
    wide = helper.make_tensor_value_info("wide", TensorProto.FLOAT16, SHAPE)
    extra.insert(0, helper.make_node("Shape", ["q"], ["numbers"]))
    for values in ([wide], []):  # nor one whose rank nobody knows
        with pytest.raises(ExportError, match="'Scatter' is ScatterElements"):
            check_model(save(path, attention(), extra=extra, values=values))


def test_float64_is_named(path):
    extra = [helper.make_node("Cast", ["q"], ["wide"], to=TensorProto.DOUBLE)]
    value = helper.make_tensor_value_info("wide", TensorProto.DOUBLE, SHAPE)
    with pytest.raises(ExportError, match="'wide' is DOUBLE"):
        check_model(save(path, attention(), extra=extra, values=[value]))


def test_a_squeeze_that_the_exporter_left_is_named(path):
    """Its axes may be those of an input, for example; TensorRT for RTX 1.6 refuses any."""
    extra = [helper.make_node("Squeeze", ["q", "grid"], ["c"], "blocks.0/Squeeze")]
    with pytest.raises(ExportError, match="'blocks.0/Squeeze' is Squeeze, which TensorRT"):
        check_model(save(path, attention(), extra=extra))


def test_missing_and_broken_files(path):
    with pytest.raises(InvalidInputError, match="no ONNX file"):
        check_model(path)
    path.write_bytes(b"not a model")
    with pytest.raises(ExportError, match="refuses"):
        check_model(path)
