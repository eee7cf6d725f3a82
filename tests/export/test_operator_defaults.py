"""Defaults of version 1 of the ONNX operator are frozen; Python's move in one place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from helpers import plain_dit
from helpers.plain_dit import GRID, PlainDiT, example
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export import export_module, operator
from rainfusion_trt.operator.settings import (
    NODE_ATTRIBUTES,
    OPERATOR_V1_DEFAULTS,
    AttentionSettings,
)
from rainfusion_trt.plugin.build import source_directory

# A package whose one place of Python's defaults says something else, and all who follow it.
MOVED = {"method": "rainfusion2", "alpha": 0.5, "sink_frames": 3}
LINES = {
    '    method: Method = "piecewise"\n': '    method: Method = "rainfusion2"\n',
    "    alpha: float = 0.9\n": "    alpha: float = 0.5\n",
    "    sink_frames: int = 1\n": "    sink_frames: int = 3\n",
}
FOLLOW = """
import importlib.util, inspect, json, sys, types
from pathlib import Path

name, lines, output = "rainfusion_trt.operator.settings", json.loads(sys.argv[1]), sys.argv[2]
file = Path(importlib.util.find_spec("rainfusion_trt").origin).parent / "operator" / "settings.py"
source = file.read_text()
for old, new in lines.items():
    assert source.count(old) == 1, old
    source = source.replace(old, new)
module = sys.modules[name] = types.ModuleType(name)
exec(compile(source, file, "exec"), module.__dict__)

import onnx_ir as ir
import torch
import rainfusion_trt
from plain_dit import GRID, PlainDiT, example
from rainfusion_trt.demo import __main__ as demo
from rainfusion_trt.export import cli, export_module, operator
from rainfusion_trt.models import get_model
from rainfusion_trt.operator.geometry import TokenLayout

def defaults(function):
    parameters = inspect.signature(function).parameters
    return {n: p.default for n, p in parameters.items() if n in module.ATTRIBUTES}

calls = {
    "rainfusion_attention": rainfusion_trt.rainfusion_attention,
    "classify_heads": rainfusion_trt.classify_heads,
    "TokenLayout": TokenLayout,
    "export": cli.main,
    "demo": demo.main,
}
model = get_model("cogvideox-2b")
transformer = model.create(model.config("tiny"), dtype=torch.float32)
enabled = rainfusion_trt.enable(transformer).settings.record()
function = ir.serde.serialize_function(operator.dense_function(kv_len=False))
schema = operator.node_of().op_schema
export_module(PlainDiT().eval(), example(), grid=GRID, output=output)
print(json.dumps({
    "calls": {name: defaults(call) for name, call in calls.items()},
    "enabled": enabled,
    "frozen": module.OPERATOR_V1_DEFAULTS.attributes(),
    "function": {a.name: str(a) for a in function.attribute_proto},
    "schema": {n: str(a.default_value) for n, a in schema.attributes.items()},
}))
"""


def values(attributes) -> dict[str, object]:
    """Values of ONNX attributes, numbers as float32 has them."""
    found = {a.name: onnx.helper.get_attribute_value(a) for a in attributes}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


def expected(settings: AttentionSettings) -> dict[str, object]:
    """All attributes of a node of these settings."""
    wanted = {**settings.node_attributes(), **operator.PLUGIN_ATTRIBUTES}
    return {k: pytest.approx(v) if isinstance(v, float) else v for k, v in wanted.items()}


def nodes(path: Path) -> list[onnx.NodeProto]:
    return [n for n in onnx.load(path).graph.node if n.domain == operator.DOMAIN]


@pytest.mark.parametrize("kv_len", [False, True])
def test_function_has_version_1s_defaults(kv_len):
    function = ir.serde.serialize_function(operator.dense_function(kv_len=kv_len))
    assert values(function.attribute_proto) == expected(OPERATOR_V1_DEFAULTS)
    assert not function.attribute  # none without a default


def test_schema_has_version_1s_defaults():
    schema = operator.node_of().op_schema
    found = values(attribute.default_value for attribute in schema.attributes.values())
    assert found == expected(OPERATOR_V1_DEFAULTS)
    assert not any(attribute.required for attribute in schema.attributes.values())


@pytest.mark.parametrize(
    "settings",
    [
        None,
        OPERATOR_V1_DEFAULTS,
        AttentionSettings("rainfusion_plus", 1, 0),
        AttentionSettings(last_sink_frames=2),
        AttentionSettings(last_sink_frames=1, exact_frames=(0, 2)),
    ],
    ids=["Python's", "version 1's", "others", "sinks at the end", "exact frames"],
)
def test_every_node_carries_every_attribute(settings, tmp_path):
    """Also where a value is the default, which another reader may not know."""
    path = tmp_path / "m.onnx"
    export_module(PlainDiT().eval(), example(), grid=GRID, output=path, settings=settings)
    found = nodes(path)
    assert len(found) == 2
    later = [] if settings is None else list(settings.later_attributes())
    names = {*NODE_ATTRIBUTES, *operator.PLUGIN_ATTRIBUTES, *later}
    for node in found:
        assert {a.name for a in node.attribute} == names
        assert values(node.attribute) == expected(settings or AttentionSettings())
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    recorded = json.loads(properties["rainfusion.settings"])
    assert recorded == (settings or AttentionSettings()).record()
    # What a function does not declare its nodes must not have, and old files declare none of it.
    (body,) = onnx.load(path).functions
    wanted = expected(OPERATOR_V1_DEFAULTS)
    wanted |= {name: [] if name == "exact_frames" else 0 for name in later}
    assert values(body.attribute_proto) == wanted
    assert read_for_build(path).account.settings == (settings or AttentionSettings())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in example().items()}
    (output,) = session.run(None, {**feed, "sparsity": np.zeros(1, np.float32)})
    assert np.isfinite(output).all()


def test_text_is_refused_before_work_starts(tmp_path):
    settings = AttentionSettings(text="first")
    path = tmp_path / "m.onnx"
    with pytest.raises(InvalidInputError, match="cannot be set for a whole model"):
        export_module(PlainDiT().eval(), example(), grid=GRID, output=path, settings=settings)
    assert not list(tmp_path.iterdir())


def test_pythons_defaults_move_in_one_place_and_version_1s_stay(tmp_path):
    path = tmp_path / "m.onnx"
    folders = (source_directory(), Path(plain_dit.__file__).parent)
    child = subprocess.run(
        [sys.executable, "-c", FOLLOW, json.dumps(LINES), path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, folders), *sys.path])},
        timeout=600,
    )
    assert child.returncode == 0, child.stderr
    report = json.loads(child.stdout.splitlines()[-1])

    calls = report["calls"]
    for name in ("rainfusion_attention", "classify_heads", "export"):
        assert {k: calls[name][k] for k in MOVED} == MOVED, name
    assert report["enabled"] == MOVED
    assert calls["TokenLayout"] == {
        "text": "none",
        "sink_frames": 3,
        "last_sink_frames": 0,
        "exact_frames": [],
    }
    assert calls["demo"] == {"method": "rainfusion2"}
    for node in nodes(path):
        assert values(node.attribute) == expected(OPERATOR_V1_DEFAULTS.replace(**MOVED))

    frozen = {**OPERATOR_V1_DEFAULTS.attributes(), "exact_frames": []}  # as JSON has it
    assert report["frozen"] == frozen
    function = ir.serde.serialize_function(operator.dense_function(kv_len=False))
    assert report["function"] == {a.name: str(a) for a in function.attribute_proto}
    schema = operator.node_of().op_schema
    assert report["schema"] == {n: str(a.default_value) for n, a in schema.attributes.items()}
    (written,) = onnx.load(path).functions  # what old readers of the new file see
    assert values(written.attribute_proto) == expected(OPERATOR_V1_DEFAULTS)
