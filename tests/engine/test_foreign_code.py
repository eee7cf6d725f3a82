"""Code that lies in the working directory is not imported by a build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.engine_models import PROFILE, write_model
from rainfusion_trt.engine.flavour import available_flavours
from rainfusion_trt.engine.messages import BuildRequest
from rainfusion_trt.engine.process import run_worker
from rainfusion_trt.engine.recipe import BuilderSettings
from rainfusion_trt.errors import EngineBuildError

PLANTED = ("pydantic", "typing_extensions", "numpy", "runpy", "logging", "rainfusion_trt", "torch")


@pytest.fixture
def planted(tmp_path, monkeypatch) -> Path:
    """A working directory with modules of common names, each of which leaves a mark."""
    for name in PLANTED:
        code = f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n"
        (tmp_path / f"{name}.py").write_text(code + "raise SystemExit('planted')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def request_for(folder: Path) -> BuildRequest:
    return BuildRequest(
        onnx=folder / "nowhere.onnx",
        plugin=folder / "nowhere.so",
        plan=folder / "engine.plan",
        flavour="tensorrt_rtx",
        targets=("sm80",),
        profiles={},
        builder=BuilderSettings(),
        attention_nodes=("a",),
    )


@pytest.mark.parametrize("path", [None, "", os.pathsep, f"{os.pathsep}/nowhere", "/nowhere"])
def test_the_worker_imports_nothing_from_the_working_directory(planted, monkeypatch, path):
    """Whatever PYTHONPATH holds by accident: an empty entry is the working directory to Python."""
    if path is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", path)
    # The worker came as far as the request, which it cannot fulfil.
    with pytest.raises(EngineBuildError, match=r"nowhere\.so|no TensorRT"):
        run_worker(request_for(planted))
    assert not (planted / "executed").exists()


def test_modules_on_pythonpath_still_work(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w').write('')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineBuildError):
        run_worker(request_for(tmp_path))
    assert (tmp_path / "executed").exists()


@pytest.mark.tensorrt
@pytest.mark.skipif("tensorrt_rtx" not in available_flavours(), reason="no TensorRT for RTX")
def test_the_installed_command_builds_beside_planted_modules(planted, plugin_library):
    command = Path(sys.executable).with_name("rainfusion-trt")
    if not command.exists():
        pytest.skip("the package is not installed here")
    write_model(planted / "m.onnx")
    (planted / "recipe.yaml").write_text(PROFILE)
    done = subprocess.run(
        [command, "build-engine", "m.onnx", "--recipe", "recipe.yaml", "--plugin", plugin_library],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (planted / "m.engine" / "engine.plan").stat().st_size > 0
    assert not (planted / "executed").exists()
