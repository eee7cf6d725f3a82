"""Rewrites of writes into a part of a tensor, which ONNX has as scatters with large indices.

Each function changes the FX graph of an ExportedProgram in place; see `rewrites`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.fx import Graph, Node

from rainfusion_trt.export.traced_nodes import (
    add_up,
    arguments,
    call,
    calls,
    extent,
    is_negative,
    is_number,
    number_range,
    replace,
    slice_bounds,
)

aten = torch.ops.aten


def lane_writes_to_stack(graph: Graph) -> None:
    """Turn ``out[..., 0::2] = a; out[..., 1::2] = b`` into ``stack([a, b], -1).flatten(-2)``.

    The two writes overwrite all of `out`. Otherwise they become two ScatterND.
    """
    for node in calls(graph, aten.slice_scatter.default):
        first = arguments(node)[0]
        if first.target is not aten.slice_scatter.default:
            continue
        lanes = {_lane(write): arguments(write)[1] for write in (first, node)}
        if set(lanes) == {0, 1}:
            pairs = call(node, aten.stack.default, [lanes[0], lanes[1]], -1)
            replace(node, call(node, aten.flatten.using_ints, pairs, -2, -1))


def _lane(write: Node) -> int | None:
    """Return 0 or 1 if a slice_scatter writes all even or all odd places of the last axis."""
    target, _, *bounds = arguments(write)
    axis, start, end, step = slice_bounds(write, target, bounds)
    shape = target.meta["val"].shape
    whole = axis in (-1, len(shape) - 1) and is_number(end, sys.maxsize) and step == 2
    even = isinstance(shape[-1], int) and shape[-1] % 2 == 0
    return start if whole and even and start in (0, 1) else None


def slice_scatter_to_cat(graph: Graph) -> None:
    """Turn ``x[a:b] = y``, traced as ``slice_scatter``, into ``cat(x[:a], y, x[b:])``.

    Otherwise it becomes ScatterND with an index as large as x.
    """
    for node in calls(graph, aten.slice_scatter.default):
        target, source, *bounds = arguments(node)
        axis, start, end, step = slice_bounds(node, target, bounds)
        if step != 1 or is_negative(start) or is_negative(end):
            continue
        parts = [source]
        if not is_number(start, 0):
            parts.insert(0, call(node, aten.slice.Tensor, target, axis, 0, start))
        if not is_number(end, sys.maxsize):
            parts.append(call(node, aten.slice.Tensor, target, axis, end, sys.maxsize))
        replace(node, call(node, aten.cat.default, parts, axis) if len(parts) > 1 else source)


def select_scatter_to_cat(graph: Graph) -> None:
    """Turn ``x[:, i] = y``, traced as ``select_scatter``, into ``cat(x[:i], y, x[i + 1:])``.

    Otherwise it becomes ScatterElements with an index as large as y.
    """
    for node in calls(graph, aten.select_scatter.default):
        target, source, axis, index = arguments(node)
        if not isinstance(index, int) or index < 0:
            continue
        parts = [call(node, aten.unsqueeze.default, source, axis)]
        if index > 0:
            parts.insert(0, call(node, aten.slice.Tensor, target, axis, 0, index))
        if not is_number(target.meta["val"].shape[axis], index + 1):
            parts.append(call(node, aten.slice.Tensor, target, axis, index + 1, sys.maxsize))
        replace(node, call(node, aten.cat.default, parts, axis))


def row_copies_to_lookups(graph: Graph) -> None:
    """Turn ``zeros.index_copy(1, i, a).index_copy(1, j, b)`` into ``cat([0, a, b], 1)[:, source]``.

    `source` says of every row where it comes from. It is one number a row, written in the order of
    the copies; otherwise each copy becomes a scatter with an index as large as its rows.
    """
    for last in calls(graph, aten.index_copy.default):
        axis = arguments(last)[1]
        if any(user.target is aten.index_copy.default for user in last.users):
            continue  # not the last of its row
        copies: list[Node] = []
        base = last
        while base.target is aten.index_copy.default and arguments(base)[1] == axis:
            copies.insert(0, base)
            base = arguments(base)[0]
        indices = [arguments(copy)[2] for copy in copies]
        values = [index.meta["val"] for index in indices]
        lists = all(value.dim() == 1 and value.dtype is torch.int64 for value in values)
        if not lists or not _is_zeros(base):
            continue
        rows = [arguments(copy)[3] for copy in copies]
        shape = list(rows[0].meta["val"].shape)
        shape[axis] = 1
        sizes = [extent(last, rows[0], place, size) for place, size in enumerate(shape)]
        parts = [call(last, aten.new_zeros.default, rows[0], sizes)]
        count = extent(last, base, axis, base.meta["val"].shape[axis])
        source = call(last, aten.new_zeros.default, indices[0], [count])
        first: Any = 1
        for index, part in zip(indices, rows, strict=True):
            parts.append(part)
            end = add_up(last, [first, extent(last, part, axis, part.meta["val"].shape[axis])])
            numbers = number_range(last, first, end, index)
            source = call(last, aten.scatter.src, source, 0, index, numbers)
            first = end
        whole = call(last, aten.cat.default, parts, axis)
        replace(last, call(last, aten.index_select.default, whole, axis, source))


def _is_zeros(node: Node) -> bool:
    """Whether a value is made as zeros."""
    if node.target in (aten.full.default, aten.new_full.default):
        return arguments(node)[-1] == 0
    return node.target in (aten.zeros.default, aten.new_zeros.default)
