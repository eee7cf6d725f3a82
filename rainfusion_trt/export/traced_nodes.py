"""Nodes of a traced FX graph: found, read, made and replaced, for the rewrites of it."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map

aten = torch.ops.aten


def add_up(anchor: Node, sizes: list[Any]) -> Any:
    """Add up sizes, each a number or a node."""
    total = sizes[0]
    for size in sizes[1:]:
        known = isinstance(total, int) and isinstance(size, int)
        total = total + size if known else call(anchor, operator.add, total, size)
    return total


def calls(graph: Graph, target: Callable[..., Any]) -> list[Node]:
    """The calls of an operator, in their order."""
    return [n for n in graph.nodes if n.op == "call_function" and n.target is target]


def arguments(node: Node) -> tuple[Any, ...]:
    """Positional arguments of a call; the operator's schema gives their types."""
    return node.args


def slice_bounds(node: Node, source: Node, bounds: list[Any]) -> tuple[int, Any, Any, Any]:
    """(axis, start, end, step) of a slice or slice_scatter; ``sys.maxsize`` is the axis's end."""
    values: dict[str, Any] = dict(zip(("dim", "start", "end", "step"), bounds, strict=False))
    values.update(node.kwargs)
    axis, start, end = values.get("dim", 0), values.get("start"), values.get("end")
    size = source.meta["val"].shape[axis]
    if end is None or (isinstance(end, int) and isinstance(size, int) and end >= size):
        end = sys.maxsize
    return axis, 0 if start is None else start, end, values.get("step", 1)


def is_number(bound: Any, value: int) -> bool:
    """Whether a bound is known to be that number."""
    return isinstance(bound, int) and bound == value


def is_negative(bound: Any) -> bool:
    """Whether a bound is known to count from the end."""
    return isinstance(bound, int) and bound < 0


def call(anchor: Node, target: Callable[..., Any], *args: Any) -> Node:
    """Insert a call before `anchor`, as if it came from the same line of the model."""
    with anchor.graph.inserting_before(anchor):
        node = anchor.graph.call_function(target, args)
    for key in ("nn_module_stack", "stack_trace"):
        if key in anchor.meta:
            node.meta[key] = anchor.meta[key]
    values = tree_map(lambda a: a.meta["val"] if isinstance(a, Node) else a, args)
    node.meta["val"] = target(*values)  # later rewrites read it
    return node


def replace(node: Node, new: Node) -> None:
    """Put another node in the place of a node."""
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def extent(anchor: Node, source: Node, axis: int, size: Any) -> Any:
    """An extent of `source` as a number or, where it varies, a node."""
    return size if isinstance(size, int) else call(anchor, aten.sym_size.int, source, axis)


def number_range(anchor: Node, start: Any, end: Any, like: Node) -> Node:
    """The numbers from `start` to before `end`, of the dtype and device of `like`."""
    value = like.meta["val"]
    with value.fake_mode:  # a range has no input that would tell it; it would fix the bounds
        node = call(anchor, aten.arange.start, start, end)
        kind = {"dtype": value.dtype, "device": value.device}
        node.kwargs, node.meta["val"] = kind, node.meta["val"].to(**kind)
    return node
