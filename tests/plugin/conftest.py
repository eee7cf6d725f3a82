"""The conformance host, built beside the library."""

from __future__ import annotations

from pathlib import Path

import pytest

from rainfusion_trt.plugin.build import build_lock, compile_targets, source_directory


@pytest.fixture(scope="session")
def conformance(plugin_library) -> Path:
    directory = source_directory() / "build" / "plugin"
    if not (directory / "configuration.txt").is_file():
        pytest.skip("the library was not built in this checkout")
    with build_lock(directory.parent) as lock:
        compile_targets(directory, ["rainfusion_conformance"], lock)
    return directory / "rainfusion_conformance"
