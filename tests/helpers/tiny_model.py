"""The smallest ONNX model with a RainFusionAttention node, and its build by a real TensorRT."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from rainfusion_trt.engine.flavour import load_tensorrt

DOMAIN = "rainfusion"
OP = "RainFusionAttention"
INPUTS = ["query", "key", "value", "grid", "sparsity"]
ATTRIBUTES = {"text": "last", "method": "rainfusion", "alpha": 0.9, "sink_frames": 1, "scale": 0.0}
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
PROFILE = [{"batch": 1}, {"batch": 2}, {"batch": 4}]


def make_model(
    dtype: int = TensorProto.FLOAT16,
    head_size: int = 64,
    text_tokens: int = 5,
    plugin_attributes: bool = True,
    kv_len: bool = False,
    dynamic: bool = False,
    **attributes: object,
) -> onnx.ModelProto:
    """One node on [B, 2, 2*3*4 + text_tokens, head_size] with a dense local function as its body.

    Batch is dynamic, with `dynamic` also tokens and grid; the rest is fixed.
    """
    inputs = [*INPUTS, "kv_len"] if kv_len else INPUTS
    values = {**ATTRIBUTES, **attributes, **(PLUGIN_ATTRIBUTES if plugin_attributes else {})}
    tokens = "tokens" if dynamic else 2 * 3 * 4 + text_tokens
    grid = ["frames", "height", "width"] if dynamic else [2, 3, 4]
    shape = ["batch", 2, tokens, head_size]
    infos = [helper.make_tensor_value_info(name, dtype, shape) for name in inputs[:3]]
    infos.append(helper.make_tensor_value_info("grid", dtype, grid))
    infos.append(helper.make_tensor_value_info("sparsity", TensorProto.FLOAT, [1]))
    if kv_len:
        infos.append(helper.make_tensor_value_info("kv_len", TensorProto.INT32, ["batch"]))
    node = helper.make_node(OP, inputs, ["attention"], domain=DOMAIN, **values)
    # A layer of TensorRT's own on either side, as in a network.
    result = helper.make_node("Add", ["attention", "query"], ["output"])
    graph = helper.make_graph(
        [node, result], "tiny", infos, [helper.make_tensor_value_info("output", dtype, shape)]
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    body = [
        helper.make_node("Transpose", ["key"], ["key_t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["query", "key_t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "value"], ["out"]),
    ]
    function = helper.make_function(
        DOMAIN, OP, inputs, ["out"], body, opsets, attributes=list(values)
    )
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)


Profile = list[dict[str, int]]
"""The smallest, best and largest value of each dynamic axis."""


def build(
    model: onnx.ModelProto, library: str, targets: list[str], profiles: list[Profile], plan: str
) -> dict[str, object]:
    """Parse and build `model`; its layers by type, and the size of the engine."""
    trt = load_tensorrt("tensorrt_rtx").module
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    if library:
        builder.get_plugin_registry().load_library(library)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return {"errors": [parser.get_error(i).desc() for i in range(parser.num_errors)]}
    layers = [str(network.get_layer(i).type).split(".")[-1] for i in range(network.num_layers)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
    axes = {
        info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in model.graph.input
    }
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for name, names in axes.items():
            profile.set_shape(name, *([at.get(axis, axis) for axis in names] for at in sizes))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is not None and plan:
        Path(plan).write_bytes(engine)
    return {"layers": layers, "bytes": 0 if engine is None else engine.nbytes}


def main() -> None:
    """Child process of the tests: a failed build can take the process with it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--library", default="")
    parser.add_argument("--targets", nargs="+", default=["SM80"])
    parser.add_argument("--profiles", type=json.loads, default=[PROFILE])
    parser.add_argument("--plan", default="", help="where to put the engine")
    arguments = vars(parser.parse_args())
    result = build(onnx.load(arguments.pop("model")), **arguments)
    print(json.dumps(result))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
