"""The plugin as a stand-in for TensorRT sees it, and as the real one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from helpers import tiny_model
from helpers.tiny_model import make_model
from rainfusion_trt.engine.flavour import available_flavours, rtx_link_directory
from rainfusion_trt.plugin.build import compile_targets, source_directory

TINY_MODEL = Path(tiny_model.__file__)
needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in available_flavours(), reason="TensorRT for RTX is not importable"
)


@pytest.fixture(scope="module")
def conformance(plugin_library) -> Path:
    directory = source_directory() / "build" / "plugin"
    if not (directory / "configuration.txt").is_file():
        pytest.skip("the library was not built in this checkout")
    compile_targets(directory, ["rainfusion_conformance"])
    return directory / "rainfusion_conformance"


def test_protocol(conformance, plugin_library):
    result = subprocess.run([conformance, plugin_library], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 failed" in result.stdout


@pytest.mark.gpu
def test_execution(conformance, plugin_library):
    result = subprocess.run([conformance, plugin_library, "--gpu"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "not checked" not in result.stdout


def test_no_gpu_is_a_failure_where_one_is_needed(conformance, plugin_library):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([conformance, plugin_library, "--gpu"], env=environment)
    assert result.returncode == 1


def build(model: onnx.ModelProto, folder: Path, *options: str) -> tuple[dict, str]:
    """Build an engine in a child process: TensorRT may take the process with it."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    root = source_directory()
    child = subprocess.run(
        [sys.executable, TINY_MODEL, path, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=300,
    )
    log = child.stdout + child.stderr
    lines = [line for line in child.stdout.splitlines() if line.startswith("{")]
    assert lines, log
    return json.loads(lines[-1]), log


@needs_rtx
@pytest.mark.tensorrt
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("kv_len", [False, True])
def test_tensorrt_rtx_builds_the_plugin(plugin_library, tmp_path, dtype, kv_len):
    model = make_model(dtype=dtype, kv_len=kv_len)
    options = ["--library", str(plugin_library), "--targets", "SM80", "SM120"]
    result, log = build(model, tmp_path, *options)
    assert result["layers"].count("PLUGIN_V3") == 1, log
    assert result["bytes"] > 0, log


@needs_rtx
@pytest.mark.tensorrt
def test_without_library_or_namespace_the_function_runs(plugin_library, tmp_path):
    result, log = build(make_model(), tmp_path)
    assert "PLUGIN_V3" not in result["layers"], log
    model = make_model(plugin_attributes=False)
    result, log = build(model, tmp_path, "--library", str(plugin_library))
    assert "PLUGIN_V3" not in result["layers"], log


@needs_rtx
@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head_size": 80}, "head_size = 80 has no kernel"),
        ({"text_tokens": -1}, "tokens = 23 is less than T * H * W = 24"),
        ({"text": "none"}, 'text is "none"'),
        ({"method": "fast"}, "attribute 'method' is 'fast'; use one of rainfusion"),
        ({"alpha": 2.0}, "attribute 'alpha' is 2"),
        ({"dtype": TensorProto.FLOAT}, "query is offered as float32"),
    ],
)
def test_tensorrt_rtx_logs_what_is_wrong(plugin_library, tmp_path, options, words):
    result, log = build(make_model(**options), tmp_path, "--library", str(plugin_library))
    assert not result.get("bytes"), log
    assert words in log


REGISTER = """
import ctypes, sys
from rainfusion_trt.engine.flavour import load_tensorrt
shim, order = sys.argv[1:]
if order == "first":
    ctypes.CDLL(shim)
module = load_tensorrt("tensorrt_rtx").module
if order == "last":
    ctypes.CDLL(shim)
creator = module.get_plugin_registry().get_creator("RainFusionAttention", "1", "rainfusion")
print("registered" if creator else "absent")
"""


def register(plugin_library: Path, name: str, order: str) -> subprocess.CompletedProcess:
    shim = plugin_library.with_name(f"librainfusion_trt_static{name}.so")
    path = os.pathsep.join([str(rtx_link_directory() or ""), os.environ.get("LD_LIBRARY_PATH", "")])
    environment = {**os.environ, "LD_LIBRARY_PATH": path, "PYTHONPATH": str(source_directory())}
    return subprocess.run(
        [sys.executable, "-c", REGISTER, shim, order],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


@needs_rtx
@pytest.mark.tensorrt
@pytest.mark.parametrize("order", ["first", "last"])
def test_static_library_registers_itself(plugin_library, order):
    result = register(plugin_library, "_rtx", order)
    assert result.stdout.strip() == "registered", result.stderr
    assert result.stderr == ""


@needs_rtx
@pytest.mark.tensorrt
@pytest.mark.parametrize("major", ["10", "11"])
def test_static_library_refuses_another_runtime(plugin_library, major):
    result = register(plugin_library, major, "last")
    assert result.stdout.strip() == "absent", result.stderr
    assert f"is for libnvinfer.so.{major} and this process has TensorRT for RTX" in result.stderr
