"""The field's own comparison: ONNX Runtime's dense body against the engine with the plugin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rainfusion_trt.engine import EngineRecipe, build_engine
from rainfusion_trt.models import VideoSize, get_model

pytest.importorskip("polygraphy")
pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compare_polygraphy.py"


def test_onnxruntime_and_engine_agree(tmp_path, plugin_library):
    from rainfusion_trt.export import export_model

    model = get_model("cogvideox")
    transformer = model.create(model.config("tiny"), dtype=torch.float16, seed=0)
    path = tmp_path / "tiny.onnx"
    export_model(model, transformer, VideoSize(9, 128, 192), output=path)
    recipe = EngineRecipe(model=model.name, precision="float16")
    engine = build_engine(path, recipe=recipe, plugin=plugin_library)
    command = [sys.executable, str(SCRIPT), str(path), "--engine", str(engine)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
