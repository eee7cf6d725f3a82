"""The operator's names, in ONNX and in TensorRT's plugin registry."""

from __future__ import annotations

from typing import Any

from rainfusion_trt.operator.settings import Precision

DOMAIN, OP_TYPE, OP_VERSION = "rainfusion", "RainFusionAttention", 1
"""The ONNX operator."""

# TensorRT looks for a plugin of the node's type, in the namespace and version that it carries.
PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE = OP_TYPE, "1", DOMAIN
SPLIT_OP_TYPE, GATHER_OP_TYPE = "RainFusionSplit", "RainFusionGather"
"""The operators around the blocks of a graph for several GPUs."""

PART_INPUT, PART_AXIS = "part", "part_tokens"
"""An input of such a graph, of whose shape alone something is read: the tokens of a GPU."""

BITS_INPUT, BITS_AXIS = "bits", "precision_bits"
"""An input of a graph of 8 bits, whose length alone is read: the precision of a call."""

BITS: dict[Precision, int] = {"8bit": 8, "16bit": 16}
"""How long that input is."""

OWN_INPUTS = ("sparsity", PART_INPUT, BITS_INPUT)
"""Inputs of a graph that no call of a diffusers pipeline has."""

SHAPE_INPUTS = (PART_INPUT, BITS_INPUT)
"""Those that vary though the clip does not."""

PLUGIN_ATTRIBUTES = {"plugin_namespace": PLUGIN_NAMESPACE, "plugin_version": PLUGIN_VERSION}

METADATA_PREFIX = "rainfusion."


def is_attention(node: Any) -> bool:
    """Whether a node, of `onnx` or of `onnx_ir`, is the operator."""
    return (node.domain, node.op_type) == (DOMAIN, OP_TYPE)


def is_of_tokens(node: Any) -> bool:
    """Whether a node cuts the tokens for several GPUs, or puts them together."""
    return node.domain == DOMAIN and node.op_type in (SPLIT_OP_TYPE, GATHER_OP_TYPE)
