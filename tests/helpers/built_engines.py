"""Engines that TensorRT for RTX builds of tiny models, here and without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rainfusion_trt.engine import EngineMetadata


def built_for_rtx(
    file: Path,
    plugin: Path,
    output: Path,
    *,
    precision: str,
    target: Sequence[str] = ("sm80", "sm120"),
    **recipe: Any,
) -> EngineMetadata:
    """What the engine of an ONNX file says of itself, built with the least search.

    Skips the test where TensorRT for RTX is not installed. `recipe` is the rest of the recipe.
    """
    from rainfusion_trt.engine import build_engine, load_metadata
    from rainfusion_trt.engine.flavour import available_flavours
    from rainfusion_trt.engine.recipe import EngineRecipe

    if "tensorrt_rtx" not in available_flavours():
        pytest.skip("TensorRT for RTX is not installed")
    builder = {"optimization_level": 0, "workspace_gib": 1}
    whole = EngineRecipe.model_validate(
        {"precision": precision, "target": list(target), "builder": builder, **recipe}
    )
    return load_metadata(build_engine(file, recipe=whole, plugin=plugin, output=output))
