"""A node without attributes: the plugin's defaults are those of version 1 of the operator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import yaml

from helpers.tiny_model import make_model
from rainfusion_trt.engine.flavour import available_flavours
from rainfusion_trt.engine.logger import LEFT_OUT
from rainfusion_trt.export import operator
from rainfusion_trt.operator.settings import (
    LATER_ATTRIBUTES,
    OPERATOR_V1_DEFAULTS,
    AttentionSettings,
)
from rainfusion_trt.plugin.build import source_directory

needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in available_flavours(), reason="TensorRT for RTX is not importable"
)
OPTIONAL = ("parallel", *LATER_ATTRIBUTES)  # that a node has where they are not the default
OTHER = AttentionSettings("rainfusion_plus", 0.25, 3, "first", 0.5)
LAST = OTHER.replace(last_sink_frames=2)
EXACT = LAST.replace(method="piecewise", exact_frames=(1, (3, 5)))

# The attributes of every plugin layer that TensorRT's parser makes of an ONNX file.
PARSE = """
import json, sys
from rainfusion_trt.engine.flavour import load_tensorrt
trt = load_tensorrt("tensorrt_rtx").module
library, *paths = sys.argv[1:]
logger = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(logger)
builder.get_plugin_registry().load_library(library)
for path in paths:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(path), parser.get_error(0).desc()
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    (layer,) = (layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3)
    layer.__class__ = trt.IPluginV3Layer
    build = layer.plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
    print(json.dumps(build.metadata_string))
"""


def with_attributes(settings: AttentionSettings | None) -> onnx.ModelProto:
    """A node as the exporter writes it, or one that has only what names the plugin."""
    text_tokens = 0 if settings is None or settings.text == "none" else 5
    model = make_model(text_tokens=text_tokens)
    (node,) = (n for n in model.graph.node if n.op_type == operator.OP_TYPE)
    given = {} if settings is None else settings.node_attributes()
    del node.attribute[:]
    node.attribute.extend(
        onnx.helper.make_attribute(name, value)
        for name, value in {**given, **operator.PLUGIN_ATTRIBUTES}.items()
    )
    del model.functions[:]
    kinds = {"last_sinks": "last_sink_frames" in given, "exact": "exact_frames" in given}
    body = operator.dense_function(kv_len=False, **kinds)
    model.functions.append(ir.serde.serialize_function(body))
    return model


def parsed(
    settings: list[AttentionSettings | None], library: Path, folder: Path
) -> tuple[list[dict], list[str]]:
    """The attributes of each node, as its plugin reports them, and what TensorRT warns of."""
    paths = [folder / f"{index}.onnx" for index in range(len(settings))]
    for path, given in zip(paths, settings, strict=True):
        onnx.save(with_attributes(given), path)
    child = subprocess.run(  # TensorRT may take the process with it
        [sys.executable, "-c", PARSE, library, *paths],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source_directory())},
        timeout=300,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith('"')]
    assert len(lines) == len(settings), child.stdout + child.stderr
    log = (child.stdout + child.stderr).splitlines()
    warnings = [line for line in log if "[W]" in line]
    return [dict(part.split("=") for part in line.split()) for line in lines], warnings


def as_text(settings: AttentionSettings) -> dict[str, str]:
    def one(value: object) -> str:
        if isinstance(value, list):
            return ",".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    said = {name: one(value) for name, value in settings.node_attributes().items()}
    return {**said, "parallel": "0"}  # and what came later, where it is not the default


@needs_rtx
@pytest.mark.tensorrt
def test_a_node_without_attributes_has_version_1s(plugin_library, tmp_path):
    given = [None, OPERATOR_V1_DEFAULTS, OTHER, LAST, EXACT]
    (bare, explicit, other, last, exact), _ = parsed(given, plugin_library, tmp_path)
    # So that what the plugin says is what it was given.
    assert other == as_text(OTHER) and last == as_text(LAST) and exact == as_text(EXACT)
    assert exact["exact_frames"] == "1,2,3,5"
    assert bare == explicit == as_text(OPERATOR_V1_DEFAULTS)


@needs_rtx
@pytest.mark.tensorrt
def test_nobody_is_warned_of_what_a_node_may_leave_out(plugin_library, tmp_path):
    _, warnings = parsed([OPERATOR_V1_DEFAULTS], plugin_library, tmp_path)
    assert len(warnings) == len(OPTIONAL)
    assert all(LEFT_OUT.search(line) for line in warnings), warnings


def test_the_plugins_description_agrees():
    folder = source_directory() / "plugins" / "tensorrt"
    config = yaml.safe_load((folder / "RainFusionAttention_PluginConfig.yaml").read_text())
    (version,) = config["versions"].values()
    assert version["attributes"] == [*OPERATOR_V1_DEFAULTS.node_attributes(), *OPTIONAL]
    readme = (folder / "README.md").read_text()
    for name, value in OPERATOR_V1_DEFAULTS.node_attributes().items():
        (row,) = (line for line in readme.splitlines() if line.startswith(f"| `{name}` |"))
        default = row.split("|")[3].strip().strip("`").strip('"')
        assert default == (f"{value:g}" if isinstance(value, float) else str(value))
