"""Exports diffusers transformers to ONNX with attention as one operator."""

from .check import GraphFacts, check_model
from .exporter import ExportReport, export_model
from .weightless import fake_transformer

__all__ = ["ExportReport", "GraphFacts", "check_model", "export_model", "fake_transformer"]
