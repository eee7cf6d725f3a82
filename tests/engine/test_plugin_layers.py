"""Which layers of a parsed network are RainFusionAttention, beside other plugins' layers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from helpers import second_plugin
from rainfusion_trt.engine.flavour import available_flavours
from rainfusion_trt.engine.network import count_plugin_layers
from rainfusion_trt.errors import EngineBuildError

OURS, PEER = ("RainFusionAttention", "rainfusion"), ("Exchange", "peer")


class Layer:
    """The result of `get_layer`: a base class that does not know its plugin."""

    def __init__(self, name, kind="PLUGIN_V3", plugin=None):
        self.name, self.type, self.owner = name, kind, plugin


class PluginLayer(Layer):
    """The class that does."""

    @property
    def plugin(self):
        if self.owner is None:
            return None
        name, namespace = self.owner
        core = SimpleNamespace(plugin_name=name, plugin_namespace=namespace)
        return SimpleNamespace(get_capability_interface={"core": core}.get)


TRT = SimpleNamespace(
    LayerType=SimpleNamespace(PLUGIN_V3="PLUGIN_V3"),
    IPluginV3Layer=PluginLayer,
    PluginCapabilityType=SimpleNamespace(CORE="core"),
)


def count(*layers, expected=("attn",), trt=TRT):
    """Layers counted, and the warnings."""
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda index: layers[index])
    events = []
    return count_plugin_layers(trt, network, expected, events.append), events


def test_other_plugins_are_not_counted():
    layers = [Layer("attn", plugin=OURS), Layer("a", plugin=PEER), Layer("b", plugin=PEER)]
    assert count(*layers, Layer("matmul", "MATRIX_MULTIPLY")) == (1, [])


@pytest.mark.parametrize("owner", [("RainFusionAttention", "peer"), ("Exchange", "rainfusion")])
def test_name_and_namespace_both_count(owner):
    with pytest.raises(EngineBuildError, match="only 0 of 1 .* dense body of attn"):
        count(Layer("attn", plugin=owner))


def test_another_plugin_does_not_stand_for_a_missing_layer():
    layers = [Layer("one", plugin=OURS), Layer("a", plugin=PEER)]
    with pytest.raises(EngineBuildError, match="only 1 of 2 .* dense body of two"):
        count(*layers, expected=("one", "two"))


def test_more_layers_than_nodes():
    layers = [Layer("one", plugin=OURS), Layer("inner", plugin=OURS)]
    with pytest.raises(EngineBuildError, match="2 RainFusionAttention layers came of 1 node"):
        count(*layers, expected=("one",))


@pytest.mark.parametrize(
    "trt",
    [
        SimpleNamespace(LayerType=TRT.LayerType),  # bindings without the class
        TRT,  # or with no plugin to show
    ],
)
def test_bindings_that_do_not_tell_are_judged_by_name_and_said(trt):
    layers = [Layer("attn"), Layer("exchange")]
    counted, events = count(*layers, trt=trt)
    assert counted == 1
    assert [event.severity for event in events] == ["warning", "warning"]
    assert "whose plugin layer attn is" in events[0].text
    with pytest.raises(EngineBuildError, match="only 0 of 1"):
        count(Layer("exchange"), trt=trt)


@pytest.mark.tensorrt
@pytest.mark.skipif(
    "tensorrt_rtx" not in available_flavours(), reason="TensorRT for RTX is not installed"
)
@pytest.mark.parametrize(
    ("expected", "words", "built"),
    [
        (["attn_first"], "^1 layers$", True),
        (["attn_first", "middle", "sample"], "only 1 of 3 .* body of middle, sample", False),
    ],
)
def test_an_engine_with_a_second_plugin(tmp_path, plugin_library, expected, words, built):
    model = second_plugin.write_mixed_model(tmp_path / "m.onnx")
    command = [sys.executable, second_plugin.__file__, model, plugin_library, *expected]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["warnings"] == []
    assert re.search(words, found["result"])
    assert (tmp_path / "m.onnx.plan").exists() == built
