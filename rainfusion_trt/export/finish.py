"""Turns the graph from torch.onnx into the one that is written: small, named, self-describing."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from rainfusion_trt import __version__
from rainfusion_trt.export import operator, token_nodes
from rainfusion_trt.graph_file import BITS_INPUT, DOMAIN, OP_VERSION, GraphAccount, is_attention

_SCOPES = "pkg.torch.onnx.name_scopes"
_ROOT = "transformer."  # capture.RoutedTransformer keeps the model there


def optimize(model: ir.Model) -> None:
    """Fold known values and share equal ones; leave the weights alone.

    All passes take linear time. The pattern rewriter of ``optimize_ir`` would change nothing here
    and take minutes for 42 layers.
    """
    fold_constants(model, should_fold=_should_fold)
    passes.IdentityEliminationPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _share_constants(model)
    ir.passes.Sequential(
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
    )(model)


def _share_constants(model: ir.Model) -> None:
    """Merge equal constants of the graph into one initializer; parameters stay separate."""
    shared: dict[tuple[ir.DataType, tuple[int | ir.SymbolicDim, ...], bytes], ir.Value] = {}
    initializers = model.graph.initializers
    for name, value in list(initializers.items()):
        tensor = value.const_value
        if isinstance(tensor, ir.Tensor) and isinstance(tensor.raw, np.ndarray):
            key = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
            first = shared.setdefault(key, value)
            if first is not value:
                ir.convenience.replace_all_uses_with(value, first)
                del initializers[name]


def _should_fold(node: ir.Node) -> bool | None:
    # Transposing 11 GB of weights in NumPy would take minutes and as much memory again.
    if node.op_type == "Transpose":
        return False
    tensors = [value.const_value for value in node.inputs if value is not None]
    return False if any(isinstance(getattr(t, "raw", None), FakeTensor) for t in tensors) else None


def transpose_weights(model: ir.Model) -> None:
    """Turn ``MatMul(x, Transpose(weight))`` of Linear layers into ``MatMul(x, weight_T)``.

    Each transposed tensor is made only when it is written. Its name is the parameter's with
    ``.T``, so that it can be refitted.
    """
    graph = model.graph
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or weight.name is None or not weight.is_initializer():
            continue
        raw = getattr(weight.const_value, "raw", None)
        if not isinstance(raw, Tensor):  # a small constant of the exporter
            continue
        name = f"{weight.name}.T"
        if name not in graph.initializers:
            tensor = _transposed(raw, node.attributes["perm"].as_ints(), name)
            value = ir.Value(name=name, const_value=tensor, shape=tensor.shape)
            value.type = ir.TensorType(tensor.dtype)
            graph.register_initializer(value)
        ir.convenience.replace_all_uses_with(node.outputs[0], graph.initializers[name])
        graph.remove(node, safe=True)
        if not weight.uses():
            del graph.initializers[weight.name]


def _transposed(
    raw: Tensor, order: Sequence[int], name: str
) -> ir.tensor_adapters.TorchTensor | ir.LazyTensor:
    """The transposed weight, laid out on its own device each time it is read."""
    view = ir.tensor_adapters.TorchTensor(raw.permute(*order), name=name)
    if isinstance(raw, FakeTensor):
        return view

    def lay_out() -> ir.TensorProtocol:
        return ir.tensor_adapters.TorchTensor(raw.permute(*order).contiguous(), name=name)

    return ir.LazyTensor(lay_out, view.dtype, view.shape, name=name)


def name_values(
    model: ir.Model,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
) -> None:
    """Give inputs, outputs, weights, dynamic axes and nodes their public names.

    A node is named after the module it comes from, as in
    ``transformer_blocks.0.attn1/RainFusionAttention``, so that an engine's timings can be read.
    """
    graph = model.graph
    graph.name = "transformer"
    _make_way(graph, inputs, outputs)
    symbols: dict[str, str] = {}
    for value, name in zip(graph.inputs, (*inputs, "sparsity"), strict=True):
        value.name = name
        for axis, axis_name in axes.get(name, {}).items():
            assert value.shape is not None  # torch.onnx knows every input's
            symbols.setdefault(str(value.shape[axis]), axis_name)
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name
    for name in list(graph.initializers):
        if name.startswith(_ROOT):
            graph.initializers[name].name = name.removeprefix(_ROOT)
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_named(size, symbols) for size in value.shape])
    seen: Counter[str] = Counter()
    for node in graph:
        name = f"{_module(node)}/{node.op_type}".removeprefix("/")
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def _make_way(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Take public names off values of the exporter's own: a module may have a weight `val_1`."""
    weights = {name for name in graph.initializers if name.startswith(_ROOT)}
    public = {*inputs, "sparsity", *outputs, *(name.removeprefix(_ROOT) for name in weights)}
    constants = [value for name, value in graph.initializers.items() if name not in weights]
    for value in (*constants, *(output for node in graph for output in node.outputs)):
        if value.name in public:
            value.name = f"{value.name}/value"  # a character that no name of Python has


def _named(size: int | ir.SymbolicDim, symbols: Mapping[str, str]) -> int | str:
    """Replace torch's symbols in a size by axis names."""
    if isinstance(size, int):
        return size
    return re.sub(r"\bs\d+\b", lambda match: symbols.get(match[0], match[0]), str(size))


def _module(node: ir.Node) -> str:
    """Path of the node's module, such as ``transformer_blocks.0.attn1``."""
    *scopes, _ = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
    inside = [scope.removeprefix(_ROOT) for scope in scopes if scope.startswith(_ROOT)]
    return inside[-1] if inside else ""


def describe(model: ir.Model, account: GraphAccount) -> None:
    """Add the bodies of our nodes and the account; drop torch.onnx's notes for debugging."""
    passes.ClearMetadataAndDocStringPass()(model)
    bits = any(value.name == BITS_INPUT for value in model.graph.inputs)
    has_kv_len = any(len(n.inputs) > 5 + bits for n in model.graph if is_attention(n))
    named = {name for n in model.graph if is_attention(n) for name in n.attributes}
    kinds = {
        "parallel": account.parallel,
        "bits": bits,
        "last_sinks": "last_sink_frames" in named,
        "exact": "exact_frames" in named,
    }
    functions = [operator.dense_function(kv_len=has_kv_len, **kinds)]
    if account.parallel:
        functions += token_nodes.functions()
    for function in functions:
        model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = OP_VERSION
    model.producer_name = "rainfusion-trt"
    model.producer_version = __version__
    model.metadata_props.clear()
    model.metadata_props.update(account.to_metadata())
