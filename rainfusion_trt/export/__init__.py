"""Export of diffusers transformers to ONNX, with attention as one operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rainfusion_trt._lazy import on_first_use

if TYPE_CHECKING:
    from rainfusion_trt.export.check import GraphFacts as GraphFacts
    from rainfusion_trt.export.check import check_model as check_model
    from rainfusion_trt.export.exporter import ExportReport as ExportReport
    from rainfusion_trt.export.exporter import export_model as export_model
    from rainfusion_trt.export.lora import fuse_loras as fuse_loras
    from rainfusion_trt.export.lora_file import LoraFile as LoraFile
    from rainfusion_trt.export.own_module import export_module as export_module
    from rainfusion_trt.export.weightless import fake_transformer as fake_transformer
    from rainfusion_trt.graph_file import FusedLora as FusedLora

_EXPORTS = {
    "ExportReport": "exporter",
    "FusedLora": "lora",
    "GraphFacts": "check",
    "LoraFile": "lora_file",
    "check_model": "check",
    "export_model": "exporter",
    "export_module": "own_module",
    "fake_transformer": "weightless",
    "fuse_loras": "lora",
}

__all__ = list(_EXPORTS)  # noqa: PLE0605
if not TYPE_CHECKING:  # with it a checker would take any name for granted
    __getattr__ = on_first_use(__name__, _EXPORTS)
