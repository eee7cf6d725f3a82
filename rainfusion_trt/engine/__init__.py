"""Engines: a folder with engine.plan and metadata.json, built from ONNX and a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rainfusion_trt._lazy import on_first_use

if TYPE_CHECKING:
    from rainfusion_trt.engine.build import build_engine as build_engine
    from rainfusion_trt.engine.metadata import EngineMetadata as EngineMetadata
    from rainfusion_trt.engine.metadata import load_metadata as load_metadata
    from rainfusion_trt.engine.recipe import BuilderSettings as BuilderSettings
    from rainfusion_trt.engine.recipe import EngineRecipe as EngineRecipe
    from rainfusion_trt.engine.recipe import load_recipe as load_recipe

# Imported on first use: reading an engine's metadata needs neither torch nor TensorRT.
_EXPORTS = {
    "BuilderSettings": "recipe",
    "EngineMetadata": "metadata",
    "EngineRecipe": "recipe",
    "build_engine": "build",
    "load_metadata": "metadata",
    "load_recipe": "recipe",
}

# Names of 0.1.
_RENAMED = {"EngineProfile": "EngineRecipe", "load_profile": "load_recipe"}

__all__ = list(_EXPORTS)  # noqa: PLE0605
if not TYPE_CHECKING:  # with it a checker would take any name for granted
    __getattr__ = on_first_use(__name__, _EXPORTS, _RENAMED)
