"""From CMake's CUDA architectures to the targets that the library reports."""

from __future__ import annotations

import subprocess

import pytest

from rainfusion_trt.plugin.architectures import run_on
from rainfusion_trt.plugin.build import source_directory
from rainfusion_trt.plugin.cmake import tool

MODULES = source_directory() / "plugins" / "cmake"
FIRST_OF_8_BITS = 89


def run_script(folder, *lines: str) -> subprocess.CompletedProcess:
    script = folder / "targets.cmake"
    modules = [f'include("{(MODULES / "GpuTargets.cmake").as_posix()}")']
    script.write_text("\n".join([*modules, *lines, ""]))
    return subprocess.run([tool("cmake"), "-P", script], capture_output=True, text=True)


def run_cmake(folder, architectures: str) -> subprocess.CompletedProcess:
    return run_script(
        folder, f"rainfusion_gpu_targets(targets {architectures})", 'message(STATUS "[${targets}]")'
    )


@pytest.mark.parametrize(
    ("architectures", "targets"),
    [
        ("80-real", "sm_80"),
        ("80-virtual", "compute_80"),
        ("86", "sm_86;compute_86"),
        ("80-real;90;120", "sm_80;sm_90;compute_90;sm_120;compute_120"),
        ("90a-real;100f", "sm_90a;sm_100f;compute_100f"),
        ("80-real;80-virtual;80", "sm_80;compute_80"),
    ],
)
def test_targets(tmp_path, architectures, targets):
    result = run_cmake(tmp_path, architectures)
    assert result.stdout.strip() == f"-- [{targets}]", result.stderr


@pytest.mark.parametrize("architecture", ["native", "all-major", "sm_80", "80-reel", "90x"])
def test_names_without_a_fixed_meaning_are_refused(tmp_path, architecture):
    result = run_cmake(tmp_path, f"80-real;{architecture}")
    assert result.returncode != 0
    assert f'CUDA architecture "{architecture}" is not a number' in result.stderr
    assert "rainfusion-trt build-plugin" in result.stderr


@pytest.mark.parametrize(
    ("architectures", "compiled"),
    [
        ("80-real;90;120", "89-real;90-real;90-virtual;120-real;120-virtual"),
        ("80-real", "89-real"),
        ("80-virtual", "89-virtual"),
        ("86", "89-real;89-virtual"),
        ("80-real;86-real;87-virtual;89", "89-real;89-virtual"),
        ("90a-real;100f", "90a-real;100f-real;100f-virtual"),
    ],
)
def test_kernels_of_8_bits_are_wherever_the_library_runs(tmp_path, architectures, compiled):
    """From 8.9 on: the dispatch asks for no more than that (kernels/dispatch.cc)."""
    result = run_script(
        tmp_path,
        f'include("{(MODULES / "KernelArchitecture.cmake").as_posix()}")',
        "function(rainfusion_kernel_objects name architectures)",
        '  message(STATUS "[${architectures}] ${ARGN}")',
        "endfunction()",
        f'set(CMAKE_CUDA_ARCHITECTURES "{architectures}")',
        "rainfusion_eight_bit_arch(some some.cu)",
    )
    assert result.stdout.strip() == f"-- [{compiled}] some.cu", result.stderr
    for gpu in range(80, 130):
        runs = gpu >= FIRST_OF_8_BITS and run_on(architectures, gpu, ptx=True)
        assert run_on(compiled, gpu, ptx=True) == runs, gpu
