"""build_plugin: builds, repeats, and errors."""

from __future__ import annotations

import shutil

import pytest

from helpers.elf import empty_library
from rainfusion_trt import places
from rainfusion_trt.errors import PluginBuildError
from rainfusion_trt.plugin import build as module
from rainfusion_trt.plugin import cmake
from rainfusion_trt.plugin import toolkit as cuda_toolkit
from rainfusion_trt.plugin.architectures import DEFAULT_ARCHITECTURES
from rainfusion_trt.plugin.build import build_plugin, source_directory, source_hash

CHECKOUT = source_directory()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with the plugin's sources, seen by build_plugin as its own."""
    shutil.copytree(CHECKOUT / "plugins", tmp_path / "plugins")
    shutil.copy2(CHECKOUT / "CMakeLists.txt", tmp_path)
    monkeypatch.setattr(places, "CHECKOUT", tmp_path)
    return tmp_path


@pytest.fixture
def commands(monkeypatch):
    """Commands that would run. None does, but the libraries appear."""
    seen = []

    def run(command, log, title, lock):
        seen.append([str(part) for part in command])
        for name in (module.LIBRARY_NAME, *module.STATIC_LIBRARY_NAMES):
            (log.parent / name).write_bytes(empty_library(name))

    monkeypatch.setattr(cmake, "_run", run)
    return seen


def test_builds_when_sources_or_architectures_change(checkout, commands, monkeypatch):
    monkeypatch.setenv("RAINFUSION_CUDA_ARCHITECTURES", "80-real")
    library = build_plugin()
    assert library == checkout / "build" / "librainfusion_trt.so"
    assert len(commands) == 2  # configure, build
    assert "-DCMAKE_CUDA_ARCHITECTURES=80-real" in commands[0]
    build_plugin()
    assert len(commands) == 2
    build_plugin(architectures=["80-real", "90"])
    assert "-DCMAKE_CUDA_ARCHITECTURES=80-real;90" in commands[2]
    header = checkout / "plugins" / "include" / "rainfusion" / "rainfusion.h"
    header.write_text(header.read_text() + "\n")
    build_plugin(architectures="80-real;90")
    assert len(commands) == 6
    build_plugin(architectures="80-real;90", force=True)
    assert len(commands) == 8


@pytest.mark.parametrize(
    ("built", "gpus", "again"),
    [
        ("80-real", (86,), False),
        ("80-real", (90,), True),
        ("80-real", (), False),
        ("80-real;90a-real", (80, 90), False),
        ("100a-real", (103,), True),  # machine code for that GPU alone
        ("90-virtual", (90,), True),  # no machine code
    ],
)
def test_without_a_wish_keeps_what_runs_here(checkout, commands, monkeypatch, built, gpus, again):
    monkeypatch.delenv("RAINFUSION_CUDA_ARCHITECTURES", raising=False)
    build_plugin(architectures=built)
    monkeypatch.setattr(module, "native_capabilities", lambda: gpus)
    build_plugin()
    assert len(commands) == (4 if again else 2)
    if again:
        assert f"-DCMAKE_CUDA_ARCHITECTURES={gpus[0]}-real" in commands[2]


def test_builds_when_the_version_changes(checkout, commands, monkeypatch):
    build_plugin(architectures="80-real")
    monkeypatch.setattr(module, "__version__", "99.0.0")
    build_plugin(architectures="80-real")
    assert len(commands) == 4


def test_default_architectures_are_cmakes():
    lists = (CHECKOUT / "CMakeLists.txt").read_text()
    assert f'set(CMAKE_CUDA_ARCHITECTURES "{DEFAULT_ARCHITECTURES}" CACHE' in lists


def test_python_and_cmake_hash_the_same_files(checkout):
    before = source_hash(checkout)
    assert before == source_hash(CHECKOUT)
    (checkout / "plugins" / "README.md").write_text("no source")
    assert source_hash(checkout) == before
    (checkout / "plugins" / "kernels" / "new.cuh").write_text("#pragma once")
    assert source_hash(checkout) != before


def test_package_without_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "CHECKOUT", tmp_path)
    monkeypatch.setattr(places, "PACKAGE", tmp_path)
    with pytest.raises(PluginBuildError, match="clone the rainfusion-trt repository"):
        build_plugin()


def test_failed_build_shows_the_log_and_leaves_no_library(checkout):
    (checkout / "CMakeLists.txt").write_text('message(FATAL_ERROR "no such luck")')
    with pytest.raises(
        PluginBuildError, match=r"configure.log, its last lines:(.|\n)*no such luck"
    ):
        build_plugin()
    assert not (checkout / "build" / "librainfusion_trt.so").exists()


def test_no_compiler_names_the_wheels(monkeypatch, tmp_path):
    for variable in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(cuda_toolkit, "_installed_compilers", list)
    monkeypatch.setattr(cuda_toolkit, "_wheel_directory", lambda: None)
    with pytest.raises(PluginBuildError, match=r"pip install 'rainfusion-trt\[build\]'"):
        cuda_toolkit.find_cuda_toolkit(tmp_path)


def test_old_compiler_is_passed_over_and_named(monkeypatch, tmp_path):
    old = tmp_path / "nvcc"
    old.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.8, V11.8.89'\n")
    old.chmod(0o755)
    monkeypatch.setattr(cuda_toolkit, "_installed_compilers", lambda: [old])
    monkeypatch.setattr(cuda_toolkit, "_wheel_directory", lambda: None)
    with pytest.raises(PluginBuildError, match=r"nvcc \(11\.8\)"):
        cuda_toolkit.find_cuda_toolkit(tmp_path)


def test_wheels_become_a_toolkit(monkeypatch, tmp_path):
    wheels = tmp_path / "site-packages" / "nvidia" / "cu13"
    for name in ("bin", "lib", "include", "nvvm"):
        (wheels / name).mkdir(parents=True)
    nvcc = wheels / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    (wheels / "lib" / "libcudart.so.13").write_text("")
    (wheels / "lib" / "libcudart_static.a").write_text("")
    monkeypatch.setattr(cuda_toolkit, "_installed_compilers", list)
    monkeypatch.setattr(cuda_toolkit, "_wheel_directory", lambda: wheels)
    for _ in range(2):  # the second time over the first one's links
        toolkit = cuda_toolkit.find_cuda_toolkit(tmp_path)
        assert toolkit.version == (13, 0)
        assert toolkit.root is not None
        # nvcc looks for its libraries in ../lib64 of the path it is called by.
        assert (toolkit.nvcc.parent.parent / "lib64" / "libcudart_static.a").is_file()
        assert (toolkit.root / "lib" / "libcudart.so").is_file()
