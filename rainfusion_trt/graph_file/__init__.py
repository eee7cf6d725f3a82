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
    BITS,
    BITS_AXIS,
    BITS_INPUT,
    DOMAIN,
    GATHER_OP_TYPE,
    METADATA_PREFIX,
    OP_TYPE,
    OP_VERSION,
    OWN_INPUTS,
    PART_AXIS,
    PART_INPUT,
    PLUGIN_ATTRIBUTES,
    PLUGIN_NAME,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    SHAPE_INPUTS,
    SPLIT_OP_TYPE,
    is_attention,
    is_of_tokens,
)
from rainfusion_trt.graph_file.nodes import check_attention, check_plugin, name_of, text_of

__all__ = [
    "BITS",
    "BITS_AXIS",
    "BITS_INPUT",
    "DOMAIN",
    "GATHER_OP_TYPE",
    "METADATA_PREFIX",
    "OP_TYPE",
    "OP_VERSION",
    "OWN_INPUTS",
    "PART_AXIS",
    "PART_INPUT",
    "PLUGIN_ATTRIBUTES",
    "PLUGIN_NAME",
    "PLUGIN_NAMESPACE",
    "PLUGIN_VERSION",
    "SHAPE_INPUTS",
    "SPLIT_OP_TYPE",
    "DataFile",
    "FusedLora",
    "GraphAccount",
    "GraphFile",
    "GraphTensor",
    "RecordedSettings",
    "RecordedSize",
    "check_attention",
    "check_plugin",
    "is_attention",
    "is_of_tokens",
    "name_of",
    "parse_size",
    "read_onnx",
    "text_of",
]
