"""TensorRT's ONNX parser takes the exported graphs and finds the plugin in them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from rainfusion_trt.errors import LibraryNotFoundError
from rainfusion_trt.models import get_model, model_names
from rainfusion_trt.plugin.build import find_library

pytestmark = pytest.mark.tensorrt

# In a process of its own: a parser that meets what it does not know can end the process.
PARSE = """
import json, sys
from rainfusion_trt.engine.flavour import load_tensorrt

trt = load_tensorrt().module
logger = trt.Logger(trt.Logger.ERROR)
if len(sys.argv) > 2:
    trt.get_plugin_registry().load_library(sys.argv[2])
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
parser.parse_from_file(sys.argv[1])
errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
layers = [network.get_layer(i) for i in range(network.num_layers)]
plugins = [layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
inputs = [network.get_input(i).name for i in range(network.num_inputs)]
print(json.dumps({"errors": errors, "plugins": plugins, "inputs": inputs}))
"""


def parse(*arguments) -> dict:
    command = [sys.executable, "-c", PARSE, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def library():
    try:
        return find_library()
    except LibraryNotFoundError as error:
        pytest.skip(f"no plugin library: {error}")


@pytest.mark.parametrize(
    ("name", "dtype", "dynamic"),
    [
        ("cogvideox-2b", torch.float16, False),
        ("cogvideox-5b", torch.bfloat16, False),
        ("cogvideox-5b", torch.float16, True),
    ],
    ids=str,
)
def test_attention_becomes_a_plugin_layer(exported, library, name, dtype, dynamic):
    file = exported(name, dtype, dynamic=dynamic, layers=1)
    network = parse(file.path, library)
    assert network["errors"] == []
    assert network["plugins"] == ["transformer_blocks.0.attn1/RainFusionAttention"]
    assert {"hidden_states", "timestep", "sparsity"} <= set(network["inputs"])


def test_without_the_library_the_dense_body_is_parsed(exported):
    file = exported("cogvideox-5b", torch.float16, dynamic=True, layers=1)
    network = parse(file.path)
    assert network["errors"] == [] and network["plugins"] == []


@pytest.mark.rehearsal
@pytest.mark.parametrize("name", model_names())
def test_every_model_is_parsed(exported, library, name):
    """By the TensorRT that is installed, which may be older or newer than that of CI."""
    model = get_model(name)
    file = exported(name, torch.bfloat16, dynamic=not model.one_size, layers=1)
    assert parse(file.path, library)["errors"] == []
