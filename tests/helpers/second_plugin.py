"""A process that builds an engine with RainFusionAttention and another, Python-written plugin.

``python second_plugin.py MODEL LIBRARY NODE...``: the file has one attention node and two
``peer::Exchange`` nodes, NODE are those that must become layers of our plugin. Prints how many did,
or what was refused.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from helpers.engine_models import TOKENS, write_model
from rainfusion_trt.engine import network
from rainfusion_trt.engine.flavour import load_tensorrt
from rainfusion_trt.engine.messages import BuildRequest
from rainfusion_trt.engine.recipe import BuilderSettings, ShapeRange
from rainfusion_trt.errors import EngineBuildError

PEER = {"plugin_namespace": "peer", "plugin_version": "1"}


def write_mixed_model(path: Path) -> Path:
    """attention -> Exchange -> Exchange."""
    model = onnx.load(write_model(path))
    for index, (source, target) in enumerate((("first", "middle"), ("middle", "sample")), start=1):
        node = helper.make_node("Exchange", [source], [target], target, domain="peer", **PEER)
        model.graph.node[index].CopyFrom(node)
    model.opset_import.append(helper.make_opsetid("peer", 1))
    onnx.save(model, path)
    return path


def register_exchange(trt: Any) -> Any:
    """The other plugin: one tensor in, one of the same shape out. Keep what is returned."""

    class Exchange(
        trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime
    ):
        def __init__(self) -> None:
            for base in Exchange.__bases__:
                base.__init__(self)
            self.plugin_name, self.num_outputs = "Exchange", 1
            self.plugin_namespace, self.plugin_version = PEER.values()

        def get_capability_interface(self, kind):
            return self

        def get_output_data_types(self, types):
            return types[:1]

        def get_output_shapes(self, inputs, shape_inputs, builder):
            return inputs[:1]

        def configure_plugin(self, inputs, outputs):
            pass

        def supports_format_combination(self, position, tensors, inputs):
            return tensors[position].desc.format == trt.TensorFormat.LINEAR

        def get_fields_to_serialize(self):
            return trt.PluginFieldCollection([])

        def get_valid_tactics(self):
            return []

        def clone(self):
            return Exchange()

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self) -> None:
            super().__init__()
            self.name, self.field_names = "Exchange", trt.PluginFieldCollection([])
            self.plugin_namespace, self.plugin_version = PEER.values()

        def create_plugin(self, name, fields, phase):
            return Exchange()

    creator = Creator()
    trt.get_plugin_registry().register_creator(creator, "peer")
    return creator


def main(model: str, library: str, *expected: str) -> None:
    _creator = register_exchange(load_tensorrt("tensorrt_rtx").module)
    shape = (1, 2, TOKENS, 64)
    one = ShapeRange(min=(1,), opt=(1,), max=(1,))
    request = BuildRequest(
        onnx=model,
        plugin=library,
        plan=f"{model}.plan",
        flavour="tensorrt_rtx",
        targets=("sm80",),
        profiles={"only": {"x": ShapeRange(min=shape, opt=shape, max=shape), "sparsity": one}},
        builder=BuilderSettings(),
        attention_nodes=expected,
    )
    events = []
    try:
        result = f"{network.build(request, events.append).plugin_layers} layers"
    except EngineBuildError as error:
        result = str(error)
    warnings = [event.text for event in events if "judged by name" in getattr(event, "text", "")]
    print(json.dumps({"result": result, "warnings": warnings}))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # as in the worker: unwinding TensorRT can abort
