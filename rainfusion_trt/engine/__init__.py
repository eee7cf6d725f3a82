"""Engines: a folder with engine.plan and metadata.json, built from ONNX and a recipe."""

from __future__ import annotations

from rainfusion_trt._lazy import on_first_use

# Imported on first use: reading an engine's metadata needs neither torch nor TensorRT.
_EXPORTS = {
    "BuilderSettings": "profile",
    "EngineMetadata": "metadata",
    "EngineProfile": "profile",
    "build_engine": "build",
    "load_metadata": "metadata",
    "load_profile": "profile",
}

__all__ = list(_EXPORTS)  # noqa: PLE0605
__getattr__ = on_first_use(__name__, _EXPORTS)
