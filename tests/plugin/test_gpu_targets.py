"""From CMake's CUDA architectures to the targets that the library reports."""

from __future__ import annotations

import subprocess

import pytest

from rainfusion_trt.plugin.build import source_directory
from rainfusion_trt.plugin.cmake import tool

MODULE = source_directory() / "plugins" / "cmake" / "GpuTargets.cmake"


def run_cmake(folder, architectures: str) -> subprocess.CompletedProcess:
    script = folder / "targets.cmake"
    script.write_text(
        f'include("{MODULE.as_posix()}")\n'
        f"rainfusion_gpu_targets(targets {architectures})\n"
        'message(STATUS "[${targets}]")\n'
    )
    return subprocess.run([tool("cmake"), "-P", script], capture_output=True, text=True)


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
