"""Steps of the demo that need neither plugin nor engine."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

from rainfusion_trt.demo import steps
from rainfusion_trt.demo.components import demo_pipeline
from rainfusion_trt.models import VideoSize, get_model

SIZE = VideoSize(9, 128, 192)
MODEL = get_model("cogvideox")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(steps, "DEMO_SIZE", SIZE)


@pytest.fixture
def pipe():
    return demo_pipeline(MODEL, size=SIZE)


def test_exported_once_and_run(pipe, tmp_path, caplog):
    path = tmp_path / "demo.onnx"
    with caplog.at_level(logging.INFO, "rainfusion_trt.demo"):
        steps.export_once(MODEL, pipe, path, torch.float32)
        written = path.stat().st_mtime_ns
        steps.export_once(MODEL, pipe, path, torch.float32)
    assert path.stat().st_mtime_ns == written
    assert "up to date" in caplog.text
    dense, sparse = steps.run_pair(
        {"pipe": pipe, "onnx": path, "backend": "onnxruntime", "device": "cpu"},
        {"pipe": pipe, "backend": "torch", "device": "cpu"},
        steps=2,
        seed=0,
    )
    assert dense.shape == sparse.shape == (9, 128, 192, 3)
    assert np.abs(dense - sparse).max() > 1e-4


def test_other_weights_are_exported_again(pipe, tmp_path):
    path = tmp_path / "demo.onnx"
    steps.export_once(MODEL, pipe, path, torch.float16)
    before = path.read_bytes()
    with torch.no_grad():
        pipe.transformer.proj_out.bias.add_(1.0)
    steps.export_once(MODEL, pipe, path, torch.float16)
    assert path.read_bytes() != before


def test_fingerprint_is_the_same_in_another_process(pipe):
    code = (
        "from rainfusion_trt.demo import components, steps; "
        "from rainfusion_trt.models import VideoSize, get_model; "
        "pipe = components.demo_pipeline(get_model('cogvideox'), size=VideoSize(9, 128, 192)); "
        "print(steps._fingerprint(pipe.transformer))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == steps._fingerprint(pipe.transformer)
