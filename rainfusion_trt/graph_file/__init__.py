"""An exported ONNX file: its operator, its account of itself, and the one function that reads it.

Exporter, checker, engine builder and runtime meet here. Reading needs the `onnx` package, but
neither torch nor diffusers.
"""

from __future__ import annotations

from rainfusion_trt.graph_file.account import (
    DataFile,
    FusedLora,
    GraphAccount,
    RecordedSettings,
    RecordedSize,
    parse_size,
)
from rainfusion_trt.graph_file.file import GraphFile, GraphTensor, read_onnx
from rainfusion_trt.graph_file.names import (
    DOMAIN,
    METADATA_PREFIX,
    OP_TYPE,
    OP_VERSION,
    PLUGIN_ATTRIBUTES,
    PLUGIN_NAME,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    is_attention,
)
from rainfusion_trt.graph_file.nodes import check_attention, name_of, text_of

__all__ = [
    "DOMAIN",
    "METADATA_PREFIX",
    "OP_TYPE",
    "OP_VERSION",
    "PLUGIN_ATTRIBUTES",
    "PLUGIN_NAME",
    "PLUGIN_NAMESPACE",
    "PLUGIN_VERSION",
    "DataFile",
    "FusedLora",
    "GraphAccount",
    "GraphFile",
    "GraphTensor",
    "RecordedSettings",
    "RecordedSize",
    "check_attention",
    "is_attention",
    "name_of",
    "parse_size",
    "read_onnx",
    "text_of",
]
