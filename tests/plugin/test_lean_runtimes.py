"""The plugin in the registries of TensorRT 10 and 11, by their lean runtimes.

These run engines that a whole TensorRT has made; what they have without one, and without a GPU, is
the registry, which is the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import lean_runtime
from helpers.required import aside
from rainfusion_trt.engine.plugin_registry import PLUGINS


@pytest.fixture(params=["10", "11"])
def major(request) -> str:
    return request.param


@pytest.fixture
def folder(major) -> Path:
    return aside(f"tensorrt-lean-{major}")


def child(*arguments: object) -> tuple[dict, str]:
    result = subprocess.run(
        [sys.executable, lean_runtime.__file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_registry(plugin_library, major, folder):
    """Load, find, create in both phases, refuse every bad field, unload, load again."""
    answer, log = child(folder, plugin_library)
    assert answer["version"].startswith(f"{major}.")
    assert sorted(map(tuple, answer["creators"])) == sorted(PLUGINS)
    kinds = {"text": "CHAR", "method": "CHAR", "alpha": "FLOAT32", "scale": "FLOAT32"}
    kinds |= dict.fromkeys(("sink_frames", "parallel", "last_sink_frames", "exact_frames"), "INT32")
    kinds["precision"] = "CHAR"
    assert {name: kind for name, kind, _ in answer["fields"]} == kinds
    assert answer["made"] == [True, True, True], log
    assert answer["without a layout"] is False
    for made in answer["made of bad fields"]:
        assert not any(made), log
    for words in lean_runtime.BAD:
        assert log.count(f"RainFusionAttention layer: {words}") == 2, words
    for words in lean_runtime.BAD_SAVED:
        assert words in log and "build the engine again" in log
    assert answer["present"] == [False, True, False, True]
    assert answer["again"] is True


def test_conformance(conformance, plugin_library, major, folder):
    """Every step of a layer, from attributes to a saved engine and back, by that registry."""
    (runtime,) = (folder / "tensorrt_lean_libs").glob("libnvinfer_lean.so.*")
    command = [conformance, plugin_library, "--runtime", runtime]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"in the registry of TensorRT {major}" in result.stdout
    assert " 0 failed" in result.stdout and not result.stderr


def test_static_library_registers_itself(plugin_library, major, folder):
    shim = plugin_library.with_name(f"librainfusion_trt_static{major}.so")
    answer, log = child(folder, plugin_library, shim)
    assert answer == {"registered": True} and not log


def test_static_library_of_the_other_major_refuses(plugin_library, major, folder):
    other = {"10": "11", "11": "10"}[major]
    shim = plugin_library.with_name(f"librainfusion_trt_static{other}.so")
    answer, log = child(folder, plugin_library, shim)
    assert answer == {"registered": False}
    assert f"is for libnvinfer.so.{other} and this process has TensorRT {major}." in log
