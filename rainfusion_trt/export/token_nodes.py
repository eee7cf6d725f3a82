"""The nodes around the blocks of a graph for several GPUs, and their bodies for one alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnxscript.values import Op, Opset

from rainfusion_trt.export import shared_ops
from rainfusion_trt.export.operator import (
    ANY_TYPE,
    Value,
    declared,
    formal,
    function_of,
    schema_of,
)
from rainfusion_trt.graph_file import (
    DOMAIN,
    GATHER_OP_TYPE,
    OP_VERSION,
    PLUGIN_ATTRIBUTES,
    SPLIT_OP_TYPE,
)

_DEFAULTS: dict[str, Value] = {"axis": 0, **PLUGIN_ATTRIBUTES}


def _op(name: str, tokens: Any, sizes: Any, output: Any) -> Op:
    schema = schema_of(name, [tokens, sizes], output, _DEFAULTS, ANY_TYPE)
    return Op(Opset(DOMAIN, OP_VERSION), name, schema)


_split = _op(
    SPLIT_OP_TYPE,
    formal("whole", "T", "all tokens"),
    formal("part", "G", "[n]; only its shape is read"),
    formal("output", "T", "n tokens"),
)
_gather = _op(
    GATHER_OP_TYPE,
    formal("tokens", "T", "of one GPU"),
    formal("grid", "G", "[T, H, W]; only its shape is read"),
    formal("output", "T", "T * H * W tokens"),
)


def translate_split(whole: Any, part: Any, axis: int) -> Any:
    """Make the ONNX node of ``torch.ops.rainfusion.split_tokens``."""
    return _split(whole, part, axis=axis, **PLUGIN_ATTRIBUTES)


def translate_gather(part: Any, grid: Any, tokens: Any, axis: int) -> Any:
    """Make the ONNX node of ``torch.ops.rainfusion.gather_tokens``; the grid says the tokens."""
    return _gather(part, grid, axis=axis, **PLUGIN_ATTRIBUTES)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Its part of the ``custom_translation_table`` for ``torch.onnx.export``."""
    return {
        shared_ops.split_tokens._opoverload: translate_split,
        shared_ops.gather_tokens._opoverload: translate_gather,
    }


# A part is what stands first, so that one that is as long as the whole is the whole.
_SPLIT = """
<domain: "{domain}", opset_import: ["" : 20]>
{name} <{attributes}> (whole, part) => (output)
{{
  axis_number = Constant <value_int: int = @axis> ()
  as_list = Constant <value: tensor = int64[1] {{1}}> ()
  axes = Reshape (axis_number, as_list)
  begin = Constant <value: tensor = int64[1] {{0}}> ()
  end = Shape (part)
  output = Slice (whole, begin, end, axes)
}}
"""
# The grid's shape is joined in empty, since some optimisers drop an input that no node takes.
_GATHER = """
<domain: "{domain}", opset_import: ["" : 20]>
{name} <{attributes}> (tokens, grid) => (output)
{{
  own_shape = Shape (tokens)
  of_grid = Shape <start: int = 0, end: int = 0> (grid)
  shape = Concat <axis: int = 0> (own_shape, of_grid)
  output = Reshape (tokens, shape)
}}
"""


def functions() -> list[ir.Function]:
    """Bodies of both nodes, for runtimes without the plugin and a GPU alone."""
    bodies = {SPLIT_OP_TYPE: _SPLIT, GATHER_OP_TYPE: _GATHER}
    attributes = declared(_DEFAULTS)
    return [
        function_of(body.format(domain=DOMAIN, name=name, attributes=attributes))
        for name, body in bodies.items()
    ]
