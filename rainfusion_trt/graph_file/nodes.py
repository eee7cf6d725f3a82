"""Checks the operator's nodes of an ONNX file before anything is built from them.

TensorRT's parser narrows integers in silence and hands a missing attribute on as the plugin's
default, so what a node says is compared here with what it may say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.graph_file.names import BITS_INPUT, OP_TYPE, PLUGIN_ATTRIBUTES
from rainfusion_trt.operator.exact_frames import check_within, frames_of_flat
from rainfusion_trt.operator.settings import (
    ATTRIBUTES,
    NODE_ATTRIBUTES,
    OPERATOR_V1_DEFAULTS,
    AttentionSettings,
)

if TYPE_CHECKING:
    import onnx

_INPUTS, _QUERY, _GRID = (5, 6), 0, 3  # how many, and which; of 8 bits one more, the last
# A scale that is missing is 1 / sqrt(D) everywhere; the others say what is computed.
_REQUIRED = tuple(name for name in NODE_ATTRIBUTES if name != "scale")
_TYPES = {
    **dict.fromkeys(("text", "method", "precision"), "STRING"),
    **dict.fromkeys(("sink_frames", "last_sink_frames"), "INT"),
    "exact_frames": "INTS",
}
Shape = tuple[int | str | None, ...]


def text_of(value: str | bytes) -> str:
    """A string of an ONNX file, in which protobuf leaves bytes that are no text as they are."""
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")


def name_of(node: onnx.NodeProto) -> str:
    """A node's name, or that of its output."""
    return text_of(node.name or next(iter(node.output), "") or node.op_type)


def check_plugin(node: onnx.NodeProto, origin: object) -> None:
    """Raise InvalidInputError if TensorRT would not take the plugin for a node of ours."""
    attributes = {text_of(attribute.name): attribute for attribute in node.attribute}
    for name, expected in PLUGIN_ATTRIBUTES.items():
        found = text_of(attributes[name].s) if name in attributes else None
        if found != expected:
            raise InvalidInputError(
                f"{origin}: node {name_of(node)!r} has {name}={found!r} instead of {expected!r}, "
                "so TensorRT would take its dense body instead of the plugin: export the model "
                "again"
            )


def check_attention(
    node: onnx.NodeProto,
    origin: object,
    shapes: Mapping[str | bytes, Shape],
) -> AttentionSettings:
    """The settings of a RainFusionAttention node, checked.

    Parameters
    ----------
    node
        The node.
    origin
        The file, for the message.
    shapes
        Shapes of the graph's values, as far as the file says them.

    Raises
    ------
    InvalidInputError
        TensorRT would not find the plugin; an attribute is missing, of another type or out of
        range; or text and grid do not fit the sequence.
    UnsupportedError
        8 bits or exact frames with a method that makes heads textural.
    """
    place = f"{origin}: node {name_of(node)!r}"
    attributes = {text_of(attribute.name): attribute for attribute in node.attribute}
    check_plugin(node, origin)
    missing = [name for name in _REQUIRED if name not in attributes]
    if missing:
        raise InvalidInputError(
            f"{place} lacks {', '.join(missing)}, which every exported node has: export the model "
            "again"
        )
    values = {n: _value(attributes[n], n, place) for n in ATTRIBUTES if n in attributes}
    try:
        if "exact_frames" in values:
            values["exact_frames"] = frames_of_flat(values["exact_frames"])
        settings = OPERATOR_V1_DEFAULTS.replace(**values)
    except (InvalidInputError, UnsupportedError) as error:
        raise type(error)(f"{place}: {error}; export the model again") from error
    _check_inputs(node, settings, place)
    query, grid = (shapes.get(node.input[index], ()) for index in (_QUERY, _GRID))
    _check_tokens(settings, query, grid, place)
    if grid and isinstance(grid[0], int):
        try:
            check_within(settings.exact_frames, grid[0])
        except InvalidInputError as error:
            raise InvalidInputError(f"{place}: {error}; export the model again") from error
    return settings


def _check_inputs(node: onnx.NodeProto, settings: AttentionSettings, place: str) -> None:
    more = int(settings.precision == "8bit")
    if len(node.input) - more not in _INPUTS or len(node.output) != 1:
        raise InvalidInputError(
            f"{place} has {len(node.input)} inputs and {len(node.output)} outputs, {OP_TYPE} takes "
            f"{_INPUTS[0] + more} or {_INPUTS[1] + more} and gives one: export the model again"
        )
    if more and node.input[-1] != BITS_INPUT:
        raise InvalidInputError(
            f"{place} has precision='8bit' and takes {text_of(node.input[-1])!r} in the place of "
            f"the graph's input {BITS_INPUT!r}: export the model again"
        )


def _value(attribute: onnx.AttributeProto, name: str, place: str) -> Any:
    import onnx

    found = onnx.AttributeProto.AttributeType.Name(attribute.type)
    expected = _TYPES.get(name, "FLOAT")
    if found != expected or attribute.ref_attr_name:
        raise InvalidInputError(
            f"{place} has {name} of type {found} instead of {expected}: export the model again"
        )
    value = onnx.helper.get_attribute_value(attribute)
    return text_of(value) if expected == "STRING" else value


def _check_tokens(settings: AttentionSettings, query: Shape, grid: Shape, place: str) -> None:
    """Compare the sequence with the grid, where the file says both in numbers."""
    sizes = [size for size in grid if isinstance(size, int)]
    if len(query) != 4 or len(sizes) != 3 or len(grid) != 3 or not isinstance(query[2], int):
        return
    video, tokens = math.prod(sizes), query[2]
    shown = "x".join(map(str, sizes))
    if tokens < video or min(sizes) < 1:
        wrong = f"of {tokens} tokens cannot hold the grid {shown}"
    elif settings.text == "none" and tokens > video:
        wrong = f"of {tokens} tokens holds more than the grid {shown}, but text is 'none'"
    elif settings.text != "none" and tokens == video:
        wrong = f"of {tokens} tokens holds only the grid {shown}, but text is {settings.text!r}"
    else:
        return
    raise InvalidInputError(f"{place}: a sequence {wrong}; export the model again")
