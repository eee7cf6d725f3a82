"""Loading TensorRT in a state in which its parser can load plugins."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rainfusion_trt.engine import flavour
from rainfusion_trt.engine.flavour import available_flavours, load_tensorrt, rtx_link_directory
from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError

needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in available_flavours(), reason="TensorRT for RTX is not importable"
)


def test_unknown_flavour():
    with pytest.raises(InvalidInputError, match="'tensorrt_lite'"):
        load_tensorrt("tensorrt_lite")


def test_nothing_installed_names_the_packages(monkeypatch):
    monkeypatch.setattr(flavour, "_find_module", lambda name: None)
    monkeypatch.delenv("RAINFUSION_TRT_FLAVOUR", raising=False)
    with pytest.raises(BackendUnavailableError, match="tensorrt-rtx-cu13-bindings"):
        load_tensorrt()


def test_cache_directory_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINFUSION_TRT_CACHE", str(tmp_path))
    assert flavour.cache_directory() == tmp_path


@needs_rtx
@pytest.mark.tensorrt
def test_links_have_the_name_the_parser_opens(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINFUSION_TRT_CACHE", str(tmp_path))
    links = rtx_link_directory()
    if links is None:
        pytest.skip("TensorRT for RTX does not come from wheels here")
    for _ in range(2):  # the second time over the first one's links
        assert rtx_link_directory() == links
        assert (links / "libtensorrt_rtx.so").resolve().name.startswith("libtensorrt_rtx.so.")


def run(code: str) -> subprocess.CompletedProcess:
    """In a child process: what is loaded stays loaded."""
    environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )


@needs_rtx
@pytest.mark.tensorrt
def test_loads_rtx():
    code = """
from rainfusion_trt.engine.flavour import load_tensorrt
first, second = load_tensorrt("tensorrt_rtx"), load_tensorrt("tensorrt_rtx")
assert first == second and first.module.Builder, first
assert first.version.startswith(f"{first.major}.") and first.library.is_file(), first
print(first)
"""
    result = run(code)
    assert result.stdout.startswith("TensorRT for RTX 1."), result.stderr


@needs_rtx
@pytest.mark.tensorrt
def test_import_that_came_too_early_is_noticed():
    links = rtx_link_directory()
    if links is None or "site-packages" in str(links):
        pytest.skip("the libraries need no links here")
    result = run("""
import tensorrt_rtx_bindings
from rainfusion_trt.engine.flavour import load_tensorrt
load_tensorrt("tensorrt_rtx")
""")
    assert "BackendUnavailableError" in result.stderr
    assert f"LD_LIBRARY_PATH={links}" in result.stderr
