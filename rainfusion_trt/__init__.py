"""RainFusion block-sparse attention for video diffusion transformers, in PyTorch and TensorRT."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public names and where they live; imported on first use, so that reading an engine's metadata
# does not import torch and `import rainfusion_trt` does not import TensorRT.
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

__all__ = [*_EXPORTS, "reference"]

if TYPE_CHECKING:
    from . import reference
    from .engine import build_engine
    from .geometry import Kind
    from .ops import classify_heads, rainfusion_attention
    from .pipeline import Pipeline
    from .plan import HeadPlan
    from .routing import disable, enable


def __getattr__(name: str):
    if name == "reference":
        return importlib.import_module(".reference", __name__)
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value
