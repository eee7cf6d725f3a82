"""A small ONNX model with attention nodes, made without exporting a transformer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DOMAIN, OP = "rainfusion", "RainFusionAttention"
PLUGIN = {"plugin_namespace": "rainfusion", "plugin_version": "1"}
TOKENS = 2 * 3 * 4 + 5
PROFILE = f"""
precision: float16
target: [sm80]
shapes:
  small:
    x: {{min: [1, 2, {TOKENS}, 64], opt: [1, 2, {TOKENS}, 64], max: [2, 2, {TOKENS}, 64]}}
"""


def write_model(
    path: Path,
    *,
    plugin_attributes: bool = True,
    head_size: int = 64,
    dtype: int = TensorProto.FLOAT16,
    external_data: bool = False,
    properties: dict[str, str] | None = None,
) -> Path:
    """Two attention nodes in a row and a matrix product: x [batch, 2, 29, D] -> sample."""
    attributes = {"text": "first", "method": "rainfusion", "alpha": 0.9, "sink_frames": 1}
    if plugin_attributes:
        attributes |= PLUGIN
    shape = ["batch", 2, TOKENS, head_size]
    element = helper.tensor_dtype_to_np_dtype(dtype)
    weight = numpy_helper.from_array(np.eye(head_size).astype(element), "weight")
    grid = numpy_helper.from_array(np.zeros((2, 3, 4), element), "grid")

    def attention(source: str, target: str) -> onnx.NodeProto:
        inputs = [source, source, source, "grid", "sparsity"]
        return helper.make_node(OP, inputs, [target], f"attn_{target}", domain=DOMAIN, **attributes)

    nodes = [
        attention("x", "first"),
        attention("first", "second"),
        helper.make_node("MatMul", ["second", "weight"], ["sample"]),
    ]
    body = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["out"]),
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    function = helper.make_function(
        DOMAIN, OP, ["q", "k", "v", "g", "s"], ["out"], body, opsets, attributes=list(attributes)
    )
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info("x", dtype, shape),
            helper.make_tensor_value_info("sparsity", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("sample", dtype, shape)],
        [weight, grid],
    )
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    helper.set_model_props(model, properties or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    if external_data:
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            location=f"{path.name}.data",
            size_threshold=0,
        )
    else:
        onnx.save(model, path)
    return path
