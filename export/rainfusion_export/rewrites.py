"""Rewrites of the traced graph into patterns that TensorRT's parser and optimizer handle well.

Each takes and changes the FX graph of an ExportedProgram after ``run_decompositions({})``. Values
stay the same to the last bit.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map

aten = torch.ops.aten


def rewrite(program: ExportedProgram) -> None:
    """Apply every rewrite, in place."""
    graph = program.graph_module.graph
    for apply in _REWRITES:
        apply(graph)
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()


def drop_whole_copies(graph: Graph) -> None:
    """``slice`` of everything and ``copy`` onto a tensor of the same kind are their source."""
    for node in _calls(graph, aten.slice.Tensor):
        source, _, start, end, step = _slice_arguments(node)
        if start == 0 and end == sys.maxsize and step == 1:
            _replace(node, source)
    for node in _calls(graph, aten.copy.default):
        target, source = node.args[:2]
        old, new = target.meta["val"], source.meta["val"]
        if old.dtype == new.dtype and old.dim() == new.dim() and _same_shape(old, new):
            _replace(node, source)


def unbind_pairs_to_slices(graph: Graph) -> None:
    """``x.view(..., D // 2, 2).unbind(-1)`` becomes ``x[..., 0::2], x[..., 1::2]``.

    As Split and Squeeze it is refused by the parser of TensorRT for RTX 1.7 at full size.
    """
    for node in _calls(graph, aten.unbind.int):
        view = node.args[0]
        axis = node.args[1] if len(node.args) > 1 else 0
        if view.target not in (aten.view.default, aten.reshape.default):
            continue
        pairs, source = view.meta["val"], view.args[0]
        last = source.meta["val"].dim() - 1
        if axis not in (-1, last + 1) or pairs.dim() != last + 2 or pairs.shape[-1] != 2:
            continue
        for item in list(node.users):
            lane = item.args[1]
            with graph.inserting_before(node):
                lanes = _call(graph, aten.slice.Tensor, source, last, lane, sys.maxsize, 2)
            _replace(item, lanes)


def slice_scatter_to_cat(graph: Graph) -> None:
    """``x[a:b] = y``, functionalised as ``slice_scatter``, becomes ``cat(x[:a], y, x[b:])``.

    It would become ScatterND with an index as large as x.
    """
    for node in _calls(graph, aten.slice_scatter.default):
        target, source = node.args[:2]
        axis, start, end, step = _slice_bounds(node, node.args[2:])
        if step != 1 or _negative(start) or _negative(end):
            continue
        parts = [source]
        with graph.inserting_before(node):
            if not _is(start, 0):
                parts.insert(0, _call(graph, aten.slice.Tensor, target, axis, 0, start))
            if not _is(end, sys.maxsize):
                parts.append(_call(graph, aten.slice.Tensor, target, axis, end, sys.maxsize))
            whole = _call(graph, aten.cat.default, parts, axis) if len(parts) > 1 else source
        _replace(node, whole)


def split_to_slices(graph: Graph) -> None:
    """``x.split([a, b], dim)`` becomes slices; with sizes that vary it would become a sequence."""
    for node in _calls(graph, aten.split_with_sizes.default):
        source, sizes = node.args[:2]
        axis = node.args[2] if len(node.args) > 2 else 0
        items = {item.args[1]: item for item in list(node.users)}
        start: Any = 0
        with graph.inserting_before(node):
            for index, size in enumerate(sizes):
                last = index == len(sizes) - 1
                end = sys.maxsize if last else size if _is(start, 0) else _add(graph, start, size)
                if index in items:
                    part = _call(graph, aten.slice.Tensor, source, axis, start, end)
                    _replace(items[index], part)
                start = end


_REWRITES = (drop_whole_copies, unbind_pairs_to_slices, slice_scatter_to_cat, split_to_slices)


def _add(graph: Graph, left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    return _call(graph, operator.add, left, right)


def _calls(graph: Graph, target: Callable) -> list[Node]:
    return [n for n in graph.nodes if n.op == "call_function" and n.target is target]


def _slice_arguments(node: Node) -> tuple[Node, int, Any, Any, Any]:
    return node.args[0], *_slice_bounds(node, node.args[1:])


def _slice_bounds(node: Node, arguments: tuple) -> tuple[int, Any, Any, Any]:
    """(axis, start, end, step) of a slice or slice_scatter, defaults filled in."""
    values = dict(zip(("dim", "start", "end", "step"), arguments, strict=False))
    values.update(node.kwargs)
    start, end = values.get("start"), values.get("end")
    return (
        values.get("dim", 0),
        0 if start is None else start,
        sys.maxsize if end is None else end,
        values.get("step", 1),
    )


def _is(bound: Any, value: int) -> bool:
    return isinstance(bound, int) and bound == value


def _negative(bound: Any) -> bool:
    return isinstance(bound, int) and bound < 0


def _same_shape(old: torch.Tensor, new: torch.Tensor) -> bool:
    return all(a == b for a, b in zip(old.shape, new.shape, strict=True))


def _call(graph: Graph, target: Callable, *args: Any) -> Node:
    """A new node with the meta value that later passes read."""
    node = graph.call_function(target, args)
    values = tree_map(lambda a: a.meta["val"] if isinstance(a, Node) else a, args)
    node.meta["val"] = target(*values)
    return node


def _replace(node: Node, new: Node) -> None:
    """Put `new` in place of `node`, keeping where in the model it comes from."""
    for key in ("nn_module_stack", "stack_trace"):
        if key in node.meta:
            new.meta.setdefault(key, node.meta[key])
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
