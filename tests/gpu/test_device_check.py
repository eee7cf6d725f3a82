"""Libraries that hold no code for this GPU: refused by the check, by launches and by the plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.operator import native
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.plugin.build import (
    LIBRARY_NAME,
    build_lock,
    compile_targets,
    configure,
    source_directory,
)
from rainfusion_trt.plugin.toolkit import find_cuda_toolkit

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.xdist_group(__name__)]

ATTEND = """
import torch
from rainfusion_trt import rainfusion_attention
q = torch.randn(1, 1, 256, 64, device="cuda", dtype=torch.float16)
rainfusion_attention(q, q, q, (4, 8, 8))
torch.cuda.synchronize()
print("ran")
"""


def build(folder: Path, architectures: str, *targets: str) -> Path:
    directory = folder / "plugin"
    toolkit = find_cuda_toolkit(folder)
    with build_lock(folder) as lock:
        configure(source_directory(), directory, toolkit, architectures, lock)
        compile_targets(directory, ["rainfusion_trt", *targets], lock)
    return directory / LIBRARY_NAME


@pytest.fixture(scope="module")
def capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, capability) -> Path:
    """Machine code of another major version, and no PTX."""
    other = "90-real" if capability[0] == 8 else "80-real"
    return build(tmp_path_factory.mktemp("foreign"), other, "rainfusion_conformance")


@pytest.fixture(scope="module")
def ptx(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("ptx"), "80-virtual")


def attend(library: Path, **variables: str) -> subprocess.CompletedProcess:
    """In a child process: a process loads one library."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(source_directory()), *sys.path]),
        "RAINFUSION_TRT_LIBRARY": str(library),
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-c", ATTEND], capture_output=True, text=True, env=environment, timeout=300
    )


def words(capability: tuple[int, int], built: str) -> list[str]:
    major, minor = capability
    remedy = f"RAINFUSION_CUDA_ARCHITECTURES={major}{minor} rainfusion-trt build-plugin"
    return [f"compute capability {major}.{minor}", f"holds code for {built}", remedy]


def test_library_under_test_runs_here(plugin_library, capability):
    native.load_library(plugin_library).check_device(*capability)
    result = attend(plugin_library)
    assert result.stdout.strip() == "ran", result.stderr


def test_foreign_code_is_refused_by_the_operator(foreign, capability):
    built = native.load_library(foreign).build_info.split(" ", 1)[1]
    with pytest.raises(UnsupportedError):
        native.load_library(foreign).check_device(*capability)
    result = attend(foreign)
    assert result.returncode != 0 and "UnsupportedError" in result.stderr
    assert all(word in result.stderr for word in words(capability, built)), result.stderr


def test_foreign_code_is_refused_by_a_launch_that_nobody_checked(foreign, capability):
    library = native.load_library(foreign)
    q = torch.randn(1, 1, 256, 64, device="cuda", dtype=torch.float16)
    sparsity = torch.tensor([0.5], device="cuda")
    problem = native.Problem.of(q, (4, 8, 8), AttentionSettings())
    size = library.workspace_size(problem)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    tensors = native.Tensors.of(q, q, q, torch.empty_like(q), sparsity=sparsity)
    with pytest.raises(UnsupportedError, match=rf"compute capability {capability[0]}\."):
        library.attention(problem, tensors, None, workspace.data_ptr(), size, 0)


def test_foreign_code_is_refused_by_the_plugin(foreign, capability):
    program = foreign.with_name("rainfusion_conformance")
    result = subprocess.run([program, foreign], capture_output=True, text=True)
    assert result.returncode == 1 and "FAILED" not in result.stdout
    built = native.load_library(foreign).build_info.split(" ", 1)[1]
    assert all(word in result.stdout for word in words(capability, built)), result.stdout


def test_ptx_runs_here(ptx, capability):
    native.load_library(ptx).check_device(*capability)
    result = attend(ptx)
    assert result.stdout.strip() == "ran", result.stderr


def test_ptx_that_cannot_be_compiled_is_named(ptx, capability):
    result = attend(ptx, CUDA_DISABLE_PTX_JIT="1", CUDA_CACHE_DISABLE="1")
    assert result.returncode != 0 and "UnsupportedError" in result.stderr
    assert all(word in result.stderr for word in words(capability, "compute_80")), result.stderr
