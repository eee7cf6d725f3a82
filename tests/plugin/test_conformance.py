"""The plugin as a stand-in for TensorRT sees it, and as the real one does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from helpers import tiny_model
from helpers.tiny_model import make_model
from rainfusion_trt.engine.flavour import available_flavours, rtx_link_directory
from rainfusion_trt.operator import native
from rainfusion_trt.plugin.build import source_directory

TINY_MODEL = Path(tiny_model.__file__)
needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in available_flavours(), reason="TensorRT for RTX is not importable"
)


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


def profile(batch: int, frames: int, text_tokens: int) -> list[dict[str, int]]:
    """From one small clip up to `batch` of `frames` with text."""
    return [
        {"batch": count, "frames": length, "height": 8, "width": 12, "tokens": 96 * length + text}
        for count, length, text in ((1, 2, 0), (batch, frames, 0), (batch, frames, text_tokens))
    ]


@needs_rtx
@pytest.mark.tensorrt
def test_tensorrt_rtx_saves_the_workspace_of_every_profile(plugin_library, tmp_path):
    """A layer of an engine says it has exactly what it asked for, profile by profile."""
    profiles = [profile(1, 9, 30), profile(4, 13, 77), profile(2, 5, 200)]
    plan = tmp_path / "engine.plan"
    options = ["--library", str(plugin_library), "--plan", str(plan)]
    model = make_model(dynamic=True)
    _, log = build(model, tmp_path, *options, "--profiles", json.dumps(profiles))
    library = native.load_library(plugin_library)
    bounds = [workspace_asked(library, sizes[-1]) for sizes in profiles]
    assert len(set(bounds)) == 3
    # TensorRT for RTX asks and saves one copy of the plugin a profile, in no documented format:
    # near each place where the field's name stands there must be one of the bounds, as 64 bits.
    engine = plan.read_bytes()
    places = [match.end() for match in re.finditer(b"workspace_bytes", engine)]
    assert len(places) >= len(profiles), log
    found = [
        [size for size in bounds if size.to_bytes(8, "little") in engine[place : place + 96]]
        for place in places
    ]
    assert all(len(sizes) == 1 for sizes in found), found
    assert {size for sizes in found for size in sizes} == set(bounds)


def workspace_asked(library: native.NativeLibrary, largest: dict[str, int]) -> int:
    problem = native.Problem(
        batch=largest["batch"],
        heads=2,
        tokens=largest["tokens"],
        head_size=64,
        grid_t=largest["frames"],
        grid_h=largest["height"],
        grid_w=largest["width"],
        sink_frames=1,
        alpha=0.9,
        text=native.Text.LAST,
    )
    return library.workspace_bound(problem) + 255  # to align the start


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
