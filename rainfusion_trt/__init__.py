"""RainFusion block-sparse attention for video diffusion transformers, in PyTorch and TensorRT."""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

# Public names and where they live; imported on first use, so that reading an engine's metadata
# does not import torch and `import rainfusion_trt` does not import TensorRT or diffusers.
_EXPORTS = {
    "HeadPlan": "plan",
    "Kind": "geometry",
    "Pipeline": "pipeline",
    "build_engine": "engine",
    "classify_heads": "ops",
    "disable": "routing",
    "enable": "routing",
    "rainfusion_attention": "ops",
}
_MODULES = ("errors", "geometry", "reference")

__all__ = [*_EXPORTS, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
