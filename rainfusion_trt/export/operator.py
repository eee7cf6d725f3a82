"""The ONNX operator: its schema, its node, and its dense body for runtimes without the plugin."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Op, Opset

from rainfusion_trt.graph_file import DOMAIN, OP_TYPE, OP_VERSION, PLUGIN_ATTRIBUTES
from rainfusion_trt.operator.settings import OPERATOR_V1_DEFAULTS, AttentionSettings

Value = str | float | int | list[int]
"""Of an attribute."""

DEFAULTS = {**OPERATOR_V1_DEFAULTS.node_attributes(), **PLUGIN_ATTRIBUTES}
"""Attributes of the node and their values where a node does not name them."""

_MEANINGS = {
    "text": "none, first or last",
    "method": "rainfusion, one of its variants, or piecewise",
    "alpha": "recall from which a head counts as spatial or temporal",
    "sink_frames": "leading frames that all tokens attend to",
    "scale": "softmax scale; 0 means 1 / sqrt(D)",
    "parallel": "1 where query, key and value are of one of several GPUs",
    "precision": "16bit, or 8bit where an input bits says the precision of a call",
    "last_sink_frames": "frames at the end that all tokens attend to",
    "exact_frames": "begin and end of every range of frames that are exact",
    "axis": "axis of the tokens",
}
_FLOATS = ["tensor(float16)", "tensor(bfloat16)", "tensor(float)"]
formal = onnx.defs.OpSchema.FormalParameter
ANY_TYPE = [*_FLOATS, "tensor(int32)", "tensor(int64)", "tensor(bool)"]


PARALLEL = {"parallel": 1}
"""The attribute that a node has besides, if query, key and value are of one of several GPUs."""

EIGHT_BIT = {"precision": "8bit"}
"""The attribute that a node has besides, if it has the input `bits`."""

LAST_SINKS = {"last_sink_frames": OPERATOR_V1_DEFAULTS.last_sink_frames}
"""The attribute that a node has besides, if frames at the end of the clip are sinks."""

EXACT: dict[str, Value] = {"exact_frames": []}
"""The attribute that a node has besides, if frames anywhere in the clip are exact."""


def attributes_of(
    *, parallel: bool = False, bits: bool = False, last_sinks: bool = False, exact: bool = False
) -> dict[str, Value]:
    """Attributes of the nodes of such a graph, and what they are where a node names none."""
    extras: tuple[tuple[bool, Mapping[str, Value]], ...] = (
        *((parallel, PARALLEL), (bits, EIGHT_BIT)),
        *((last_sinks, LAST_SINKS), (exact, EXACT)),
    )
    more = {name: value for has, extra in extras if has for name, value in extra.items()}
    return {**DEFAULTS, **more}


def schema_of(
    name: str,
    inputs: list[Any],
    output: Any,
    attributes: Mapping[str, Value],
    types: list[str],
) -> onnx.defs.OpSchema:
    """The schema of an operator of ours; "T" is one of `types`, "G" any element type."""
    attribute = onnx.defs.OpSchema.Attribute
    return onnx.defs.OpSchema(
        name,
        DOMAIN,
        OP_VERSION,
        inputs=inputs,
        outputs=[output],
        type_constraints=[("T", types, ""), ("G", ANY_TYPE, "")],
        attributes=[
            attribute(name, _attribute(name, value), _MEANINGS.get(name, ""))
            for name, value in attributes.items()
        ],
    )


def _attribute(name: str, value: Value) -> onnx.AttributeProto:
    # Of an empty list onnx does not know the type.
    kind = onnx.AttributeProto.INTS if isinstance(value, list) else None
    return onnx.helper.make_attribute(name, value, attr_type=kind)


def _schema(attributes: Mapping[str, Value], *, kv_len: bool | None = None) -> onnx.defs.OpSchema:
    """Of a node with `kv_len`, without, or where that is None, either; the former two have bits."""
    option = onnx.defs.OpSchema.FormalParameterOption
    inputs = [
        formal("query", "T", "[B, N, S, D]"),
        formal("key", "T", "[B, N, S, D]"),
        formal("value", "T", "[B, N, S, D]"),
        formal("grid", "G", "[T, H, W]; only its shape is read"),
        formal("sparsity", "tensor(float)", "[1]; 0 is dense"),
    ]
    if kv_len is None:
        inputs.append(formal("kv_len", "tensor(int32)", "[B]", param_option=option.Optional))
    elif kv_len:
        inputs.append(formal("kv_len", "tensor(int32)", "[B]"))
    if kv_len is not None:
        inputs.append(formal("bits", "G", "[8] or [16]; only its shape is read"))
    return schema_of(OP_TYPE, inputs, formal("output", "T", "[B, N, S, D]"), attributes, _FLOATS)


_opset = Opset(DOMAIN, OP_VERSION)


@functools.cache
def node_of(*, bits_and_kv_len: bool | None = None, **kinds: bool) -> Op:
    """The node of graphs of the `kinds` of :func:`attributes_of`, as onnxscript writes it.

    Only it gets the schema. Elsewhere onnx knows the node by the model's own function alone; with
    the schema registered, our checks would no longer see the file as everybody else does.
    """
    attributes = attributes_of(bits=bits_and_kv_len is not None, **kinds)
    return Op(_opset, OP_TYPE, _schema(attributes, kv_len=bits_and_kv_len))


# torch.onnx reads ONNX types from the annotations; Any admits every value of the graph.
def translate(q: Any, k: Any, v: Any, grid: Any, sparsity: Any, kv_len: Any, *settings: Any) -> Any:
    """Make the ONNX node of ``torch.ops.rainfusion.attention``, with every attribute."""
    return _translated((q, k, v, grid, sparsity), kv_len, settings)


def translate_shared(
    q: Any, k: Any, v: Any, grid: Any, sparsity: Any, kv_len: Any, *settings: Any
) -> Any:
    """The same of ``torch.ops.rainfusion.shared_attention``."""
    return _translated((q, k, v, grid, sparsity), kv_len, settings, parallel=True)


def translate_of_bits(
    q: Any, k: Any, v: Any, grid: Any, sparsity: Any, kv_len: Any, *arguments: Any
) -> Any:
    """The same of ``torch.ops.rainfusion.attention_of_bits``."""
    *settings, bits, parallel = arguments
    return _translated((q, k, v, grid, sparsity), kv_len, settings, bits, parallel=parallel)


def _translated(
    inputs: tuple[Any, ...],
    kv_len: Any,
    flat: Sequence[Any],
    bits: Any = None,
    *,
    parallel: bool = False,
) -> Any:
    settings = AttentionSettings.from_flat(*flat)
    node = node_of(
        bits_and_kv_len=None if bits is None else kv_len is not None,
        parallel=parallel,
        last_sinks=settings.last_sink_frames > 0,
        exact=bool(settings.exact_frames),
    )
    given = [value for value in (*inputs, kv_len, bits) if value is not None]
    more = PARALLEL if parallel else {}
    return node(*given, **settings.node_attributes(), **PLUGIN_ATTRIBUTES, **more)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The ``custom_translation_table`` for ``torch.onnx.export``."""
    from rainfusion_trt.export import step_precision, token_nodes

    return {
        torch.ops.rainfusion.attention.default: translate,
        torch.ops.rainfusion.shared_attention.default: translate_shared,
        step_precision._attention._opoverload: translate_of_bits,
        **token_nodes.translation_table(),
    }


# Opset 20 has no `Attention`. ONNX Runtime runs this body on the CPU; TensorRT fuses its pattern.
# Softmax is in float32, because a sum over 100 000 keys would overflow float16. Optimisers of other
# projects rewrite it: constants are tensors, since some make doubles of `value_float`, and an empty
# shape of grid, sparsity and bits is joined in, since some drop inputs that no node of a function
# takes. Of 8 bits it knows nothing: it has the precision of its inputs, whatever `bits` says.
_BODY = """
<domain: "{domain}", opset_import: ["" : 20]>
{op_type} <{attributes}> (query, key, value, grid, sparsity{optional}) => (output)
{{
  query_size = Shape <start: int = 3, end: int = 4> (query)
  of_grid = Shape <start: int = 0, end: int = 0> (grid)
  of_sparsity = Shape <start: int = 0, end: int = 0> (sparsity)
  {of_bits}head_shape = Concat <axis: int = 0> (query_size, of_grid, of_sparsity{and_bits})
  head_size = Cast <to: int = 1> (head_shape)
  head_root = Sqrt (head_size)
  default_scale = Reciprocal (head_root)
  given_scale = Constant <value_float: float = @scale> ()
  zero = Constant <value: tensor = float {{0}}> ()
  is_default = Equal (given_scale, zero)
  softmax_scale = Where (is_default, default_scale, given_scale)
  typed_scale = CastLike (softmax_scale, query)
  scaled_query = Mul (query, typed_scale)
  key_columns = Transpose <perm: ints = [0, 1, 3, 2]> (key)
  products = MatMul (scaled_query, key_columns)
  scores = Cast <to: int = 1> (products)
  {mask}
  weights = Softmax <axis: int = -1> ({scores})
  typed_weights = CastLike (weights, value)
  output = MatMul (typed_weights, value)
}}
"""
_OF_BITS = "of_bits = Shape <start: int = 0, end: int = 0> (bits)\n  "
_MASK = """
  key_count = Shape <start: int = 2, end: int = 3> (key)
  key_end = Squeeze (key_count)
  first = Constant <value: tensor = int64 {0}> ()
  step = Constant <value: tensor = int64 {1}> ()
  positions = Range (first, key_end, step)
  typed_positions = Cast <to: int = 6> (positions)
  axes = Constant <value: tensor = int64[3] {1, 2, 3}> ()
  ends = Unsqueeze (kv_len, axes)
  is_real = Less (typed_positions, ends)
  lowest = Constant <value: tensor = float {-1e30}> ()
  masked = Where (is_real, scores, lowest)
"""


def dense_function(*, kv_len: bool, bits: bool = False, **kinds: bool) -> ir.Function:
    """Dense attention as the operator's body, for any ONNX runtime; `kv_len`, `bits` add inputs.

    `kinds` are those of :func:`attributes_of`. With `parallel` the body is that of a GPU alone.
    """
    attributes = attributes_of(bits=bits, **kinds)
    text = _BODY.format(
        domain=DOMAIN,
        op_type=OP_TYPE,
        attributes=declared(attributes),
        optional=(", kv_len" if kv_len else "") + (", bits" if bits else ""),
        of_bits=_OF_BITS if bits else "",
        and_bits=", of_bits" if bits else "",
        mask=_MASK if kv_len else "",
        scores="masked" if kv_len else "scores",
    )
    return function_of(text)


def function_of(text: str) -> ir.Function:
    """A function in the syntax of onnx's parser."""
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


def declared(attributes: Mapping[str, Value]) -> str:
    """Write attributes and their defaults in the syntax of onnx's parser."""
    kinds = {str: "string", float: "float", int: "int", list: "ints"}
    return ", ".join(
        f"{name}: {kinds[type(value)]} = {json.dumps(value)}" for name, value in attributes.items()
    )
