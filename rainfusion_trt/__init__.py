"""RainFusion block-sparse attention for video diffusion transformers, in PyTorch and TensorRT."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rainfusion_trt import _moved
from rainfusion_trt._lazy import on_first_use

if TYPE_CHECKING:
    from rainfusion_trt.engine import build_engine as build_engine
    from rainfusion_trt.operator.geometry import Kind as Kind
    from rainfusion_trt.operator.ops import classify_heads as classify_heads
    from rainfusion_trt.operator.ops import rainfusion_attention as rainfusion_attention
    from rainfusion_trt.operator.plan import HeadPlan as HeadPlan
    from rainfusion_trt.operator.settings import AttentionSettings as AttentionSettings
    from rainfusion_trt.parallel.config import ParallelConfig as ParallelConfig
    from rainfusion_trt.routing import cp_plan as cp_plan
    from rainfusion_trt.routing import disable as disable
    from rainfusion_trt.routing import enable as enable
    from rainfusion_trt.runtime.load_graph import load_graph as load_graph
    from rainfusion_trt.runtime.pipeline import Pipeline as Pipeline
    from rainfusion_trt.runtime.precision import PrecisionSchedule as PrecisionSchedule
    from rainfusion_trt.step_cache.settings import CacheSettings as CacheSettings

__version__ = "0.2.0"

# Public names and where they live; imported on first use, so that reading an engine's metadata
# does not import torch and `import rainfusion_trt` does not import TensorRT or diffusers.
_EXPORTS = {
    "AttentionSettings": "operator.settings",
    "CacheSettings": "step_cache.settings",
    "HeadPlan": "operator.plan",
    "Kind": "operator.geometry",
    "ParallelConfig": "parallel.config",
    "Pipeline": "runtime.pipeline",
    "PrecisionSchedule": "runtime.precision",
    "build_engine": "engine",
    "classify_heads": "operator.ops",
    "cp_plan": "routing",
    "disable": "routing",
    "enable": "routing",
    "load_graph": "runtime.load_graph",
    "rainfusion_attention": "operator.ops",
}

__all__ = [*_EXPORTS, "errors"]  # noqa: PLE0604

_moved.install()
_export = on_first_use(__name__, _EXPORTS)


if not TYPE_CHECKING:  # with it a checker would take any name for granted

    def __getattr__(name: str) -> Any:
        if name == "errors" or f"{__name__}.{name}" in _moved.MOVED:
            return importlib.import_module(f"{__name__}.{name}")
        return _export(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
