"""Metadata of an engine that no TensorRT has built, for tests that need no more than a folder."""

from __future__ import annotations

import hashlib
from typing import Any

from rainfusion_trt.engine.metadata import EngineMetadata, PluginRecord, TensorRecord
from rainfusion_trt.engine.recipe import BuilderSettings, ShapeRange

PLAN = b"engine"


def engine_metadata(**changes: Any) -> EngineMetadata:
    """Of a CogVideoX engine with one dynamic input, whose plan is `PLAN`."""
    shapes = ShapeRange(min=(1, 8), opt=(2, 8), max=(2, 8))
    fields: dict[str, Any] = {
        "model": "cogvideox-5b",
        "config": {"num_layers": 2},
        "size": "9x64x96",
        "settings": {"method": "rainfusion"},
        "precision": "float16",
        "flavour": "tensorrt_rtx",
        "version": "1.7.1.116",
        "targets": ("sm80", "sm120"),
        "device": None,
        "profiles": ("tiny",),
        "builder": BuilderSettings(optimization_level=2),
        "inputs": (
            TensorRecord(name="x", dtype="float16", shape=(-1, 8), profiles={"tiny": shapes}),
        ),
        "outputs": (TensorRecord(name="sample", dtype="float16", shape=(-1, 8)),),
        "plugin": PluginRecord(file="librainfusion_trt.so", sha256="0" * 64, build="0.1.0"),
        "plugin_layers": 2,
        "onnx": "m.onnx",
        "onnx_sha256": "1" * 64,
        "onnx_files": (),
        "key": "2" * 64,
        "engine_size": len(PLAN),
        "engine_sha256": hashlib.sha256(PLAN).hexdigest(),
        "date": "2026-01-01T00:00:00+00:00",
        "build_seconds": 1.5,
        "command": "rainfusion-trt build-engine",
    }
    return EngineMetadata(**{**fields, **changes})
