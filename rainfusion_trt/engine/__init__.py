"""Engines: a folder with engine.plan and metadata.json, built from ONNX and a recipe."""

from __future__ import annotations

import importlib

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


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
