"""Exports diffusers transformers to ONNX with attention as one operator."""

from .check import GraphFacts, check_model
from .exporter import ExportReport, export_model
from .lora import FusedLora, fuse_loras
from .lora_file import LoraFile
from .own_module import export_module
from .weightless import fake_transformer

__all__ = [
    "ExportReport",
    "FusedLora",
    "GraphFacts",
    "LoraFile",
    "check_model",
    "export_model",
    "export_module",
    "fake_transformer",
    "fuse_loras",
]
