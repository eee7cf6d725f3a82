"""Checks of an exported file before it goes to TensorRT, and its comparison with PyTorch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper

from rainfusion_trt.argument_types import typed
from rainfusion_trt.errors import ExportError, InvalidInputError
from rainfusion_trt.export.operator import DEFAULTS
from rainfusion_trt.export.source import GraphSource, all_outputs
from rainfusion_trt.graph_file import (
    DOMAIN,
    METADATA_PREFIX,
    OP_TYPE,
    PLUGIN_ATTRIBUTES,
    GraphFile,
    read_onnx,
)

# These operators appear when a pattern has escaped the rewrites: index tables as large as the
# tokens, control flow and sequences. TensorRT runs them slowly or refuses them; for RTX 1.6 that
# is any Squeeze. A ScatterElements of one number a row may stay.
FORBIDDEN = frozenset(
    {
        "If",
        "Loop",
        "NonZero",
        "Scan",
        "ScatterElements",
        "ScatterND",
        "SequenceAt",
        "SequenceConstruct",
        "SplitToSequence",
        "Squeeze",
    }
)
TOLERANCE = 1e-4  # rounding in float32 stays near 1e-5 over tens of layers
FORBIDDEN_TYPES = (TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.DOUBLE)


@dataclass(frozen=True)
class GraphFacts:
    """Counts of an exported graph.

    Attributes
    ----------
    nodes
        Number of nodes in the main graph.
    attentions
        Number of RainFusionAttention nodes among them.
    operators
        Number of nodes of each operator.
    """

    nodes: int
    attentions: int
    operators: dict[str, int]


@typed
def check_model(path: str | Path) -> GraphFacts:
    """Check an exported ONNX file on disk.

    Raises
    ------
    InvalidInputError
        The file does not exist.
    ExportError
        It is not an ONNX file, or the ONNX checker refuses it; a RainFusionAttention node lacks
        the dense body or an attribute, which the message names; the number of these nodes is not
        the model's number of attentions; or the graph has an operator that TensorRT cannot run
        well.
    """
    path = Path(path)
    file = _read(path)
    model, attentions = file.proto, file.attentions
    try:
        if file.account.weights == "none":
            onnx.checker.check_model(_with_weights_as_inputs(model))
        else:
            onnx.checker.check_model(str(path))  # by path, as weights may lie beside it
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path}: the ONNX checker refuses it: {error}") from error
    for node in attentions:
        _check_attention(path, node)
    _check_function(path, model)
    _check_count(file, len(attentions))
    _check_dtypes(file, attentions)
    _check_operators(path, model)
    operators = Counter(node.op_type for node in model.graph.node)
    return GraphFacts(len(model.graph.node), len(attentions), dict(operators))


def _read(path: Path) -> GraphFile:
    try:
        return read_onnx(path)
    except InvalidInputError as error:
        if path.is_file():  # the fault is in what the exporter wrote, not in its input
            raise ExportError(str(error)) from error
        raise


def _with_weights_as_inputs(model: ModelProto) -> ModelProto:
    """Make a graph without weights one that the checker accepts."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.initializer[:]
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            copy.graph.input.append(value)
        else:
            copy.graph.initializer.append(tensor)
    return copy


def _check_attention(path: Path, node: NodeProto) -> None:
    found = {attribute.name: attribute for attribute in node.attribute}
    for name in DEFAULTS:
        if name not in found:
            raise ExportError(
                f"{path}: node {node.name!r} lacks the attribute {name}; TensorRT would run its "
                "dense body instead of the plugin, so the model has to be exported again"
            )
    for name, value in PLUGIN_ATTRIBUTES.items():
        if found[name].s.decode() != value:
            raise ExportError(
                f"{path}: node {node.name!r} has {name}={found[name].s.decode()!r}, the plugin's "
                f"is {value!r}"
            )


def _check_function(path: Path, model: ModelProto) -> None:
    if not any((f.domain, f.name) == (DOMAIN, OP_TYPE) for f in model.functions):
        raise ExportError(
            f"{path}: has no local function {DOMAIN}.{OP_TYPE}, the dense body by which runtimes "
            "without the plugin run it"
        )


def _check_count(file: GraphFile, count: int) -> None:
    expected = file.account.attention_nodes
    if count != expected or count == 0:
        raise ExportError(
            f"{file.path}: has {count} {OP_TYPE} nodes, its metadata "
            f"({METADATA_PREFIX}attention_nodes) says {expected}"
        )


def _check_dtypes(file: GraphFile, attentions: list[NodeProto]) -> None:
    """Check that q, k and v have the model's dtype: float32 attention has no fast kernel."""
    expected = file.account.dtype
    known = {v.name: v.type.tensor_type.elem_type for v in file.proto.graph.value_info}
    for node in attentions:
        for name in node.input[:3]:
            if name in known and helper.tensor_dtype_to_np_dtype(known[name]).name != expected:
                raise ExportError(
                    f"{file.path}: node {node.name!r} reads {name!r} as "
                    f"{helper.tensor_dtype_to_string(known[name])}, the model is {expected}; cast "
                    "it back before attention"
                )


def _check_operators(path: Path, model: ModelProto) -> None:
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "ScatterElements" and ranks.get(node.output[0]) == 1:
            continue  # one number a row, as of partial_writes.row_copies_to_lookups
        if node.op_type in FORBIDDEN and node.domain == "":
            raise ExportError(
                f"{path}: node {node.name!r} is {node.op_type}, which TensorRT runs badly or not "
                "at all; a pattern of this model needs a rewrite (export/rewrites.py)"
            )
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    for name, kind in types.items():
        if kind in FORBIDDEN_TYPES:
            raise ExportError(
                f"{path}: value {name!r} is {TensorProto.DataType.Name(kind)}, which TensorRT does "
                "not compute with"
            )


def check_comparable(dtype: torch.dtype, *, has_weights: bool) -> None:
    """Refuse a comparison that cannot run: ONNX Runtime's CPU kernels need float32 and weights."""
    if not has_weights:
        raise InvalidInputError("--compare needs weights; it cannot run a graph without them")
    if dtype is not torch.float32:
        name = str(dtype).removeprefix("torch.")
        raise InvalidInputError(
            f"--compare runs ONNX Runtime on the CPU in float32, the model is {name}; export with "
            "--dtype fp32 (add --layers to keep it small)"
        )


def compare(path: Path, source: GraphSource) -> float:
    """Return the largest error of an output relative to its largest value, at sparsity 0.

    Raises
    ------
    ExportError
        The error is above 1e-4 or not finite.
    """
    import onnxruntime

    with torch.no_grad():
        expected = all_outputs(source.eager(source.arguments(source.inputs)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {name: tensor.cpu().numpy() for name, tensor in source.inputs.items()}
    feed["sparsity"] = np.zeros(1, np.float32)
    largest = 0.0
    actual = session.run(list(source.outputs), feed)
    for name, array, right in zip(source.outputs, actual, expected, strict=True):
        difference = (torch.from_numpy(array) - right.cpu()).abs().max()
        error = float(difference / right.abs().max())
        if not error <= TOLERANCE:
            raise ExportError(
                f"{path}: ONNX Runtime's {name} differs from PyTorch's by {error:.1e} (relative), "
                f"allowed are {TOLERANCE:.0e}; the export is wrong"
            )
        largest = max(largest, error)
    return largest
