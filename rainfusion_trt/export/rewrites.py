"""Rewrites of the traced graph into patterns that TensorRT's parser and optimizer handle well.

Each function changes the FX graph of an ExportedProgram in place, after ``run_decompositions({})``.
Values stay the same to the last bit; only `rms_norms_to_products` may sum in another order.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._pytree import tree_map

aten = torch.ops.aten


def rewrite(program: ExportedProgram) -> None:
    """Apply every rewrite in place."""
    graph = program.graph_module.graph
    for apply in _REWRITES:
        apply(graph)
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()


def drop_whole_copies(graph: Graph) -> None:
    """Replace a ``slice`` of everything, or a ``copy`` onto the same shape, by its source."""
    for node in _calls(graph, aten.slice.Tensor):
        source, *bounds = _arguments(node)
        _, start, end, step = _slice_bounds(node, source, bounds)
        if _is(start, 0) and _is(end, sys.maxsize) and step == 1:
            _replace(node, source)
    for node in _calls(graph, aten.copy.default):
        target, source = _arguments(node)[:2]
        old, new = target.meta["val"], source.meta["val"]
        if old.shape == new.shape:
            same = old.dtype == new.dtype
            _replace(node, source if same else _call(node, aten.to.dtype, source, old.dtype))


def drop_empty_parts(graph: Graph) -> None:
    """Drop the parts of a ``cat`` that have no elements on its axis."""
    for node in _calls(graph, aten.cat.default):
        parts, axis = (*_arguments(node), 0)[:2]
        full = [part for part in parts if not _is(part.meta["val"].shape[axis], 0)]
        if 0 < len(full) < len(parts):
            _replace(node, _call(node, aten.cat.default, full, axis) if len(full) > 1 else full[0])


def drop_idle_squeezes(graph: Graph) -> None:
    """Drop ``x.squeeze(1)`` where that axis is longer than 1; ONNX Squeeze must not do that."""
    for node in _calls(graph, aten.squeeze.dim):
        source = _arguments(node)[0]
        if node.meta["val"].dim() == source.meta["val"].dim():
            _replace(node, source)


def whole_lookups_to_unsqueeze(graph: Graph) -> None:
    """Replace ``embedding(arange(len(table))[None], table)`` by ``table[None]``."""
    for node in _calls(graph, aten.embedding.default):
        table, rows = _arguments(node)[:2]
        if rows.target is not aten.unsqueeze.default or rows.args[1] != 0:
            continue
        count = rows.args[0]
        if count.target is aten.arange.default and statically_known_true(
            count.meta["val"].shape[0] == table.meta["val"].shape[0]
        ):
            _replace(node, _call(node, aten.unsqueeze.default, table, 0))


def unbind_pairs_to_slices(graph: Graph) -> None:
    """Turn ``x.view(..., D // 2, 2).unbind(-1)`` into ``x[..., 0::2], x[..., 1::2]``.

    Otherwise it becomes Split and Squeeze, and each lane a Gather (`squeezes_to_gathers`), which
    reads single elements.
    """
    for node in _calls(graph, aten.unbind.int):
        view, axis = (*_arguments(node), 0)[:2]
        if view.target not in (aten.view.default, aten.reshape.default):
            continue
        pairs, source = view.meta["val"], view.args[0]
        last = source.meta["val"].dim() - 1
        if axis not in (-1, last + 1) or pairs.dim() != last + 2 or pairs.shape[-1] != 2:
            continue
        for item in list(node.users):
            lane = _arguments(item)[1]
            lanes = _call(node, aten.slice.Tensor, source, last, lane, sys.maxsize, 2)
            _replace(item, lanes)


def vector_unbinds_to_selects(graph: Graph) -> None:
    """Turn ``x.unbind()`` of a vector into ``x[0], x[1], ...``, without a Split."""
    for node in _calls(graph, aten.unbind.int):
        source = _arguments(node)[0]
        if source.meta["val"].dim() != 1:
            continue
        for item in list(node.users):
            _replace(item, _call(node, aten.select.int, source, 0, _arguments(item)[1]))


def lane_writes_to_stack(graph: Graph) -> None:
    """Turn ``out[..., 0::2] = a; out[..., 1::2] = b`` into ``stack([a, b], -1).flatten(-2)``.

    The two writes overwrite all of `out`. Otherwise they become two ScatterND.
    """
    for node in _calls(graph, aten.slice_scatter.default):
        first = _arguments(node)[0]
        if first.target is not aten.slice_scatter.default:
            continue
        lanes = {_lane(write): _arguments(write)[1] for write in (first, node)}
        if set(lanes) == {0, 1}:
            pairs = _call(node, aten.stack.default, [lanes[0], lanes[1]], -1)
            _replace(node, _call(node, aten.flatten.using_ints, pairs, -2, -1))


def _lane(write: Node) -> int | None:
    """Return 0 or 1 if a slice_scatter writes all even or all odd places of the last axis."""
    target, _, *bounds = _arguments(write)
    axis, start, end, step = _slice_bounds(write, target, bounds)
    shape = target.meta["val"].shape
    whole = axis in (-1, len(shape) - 1) and _is(end, sys.maxsize) and step == 2
    even = isinstance(shape[-1], int) and shape[-1] % 2 == 0
    return start if whole and even and start in (0, 1) else None


def slice_scatter_to_cat(graph: Graph) -> None:
    """Turn ``x[a:b] = y``, traced as ``slice_scatter``, into ``cat(x[:a], y, x[b:])``.

    Otherwise it becomes ScatterND with an index as large as x.
    """
    for node in _calls(graph, aten.slice_scatter.default):
        target, source, *bounds = _arguments(node)
        axis, start, end, step = _slice_bounds(node, target, bounds)
        if step != 1 or _is_negative(start) or _is_negative(end):
            continue
        parts = [source]
        if not _is(start, 0):
            parts.insert(0, _call(node, aten.slice.Tensor, target, axis, 0, start))
        if not _is(end, sys.maxsize):
            parts.append(_call(node, aten.slice.Tensor, target, axis, end, sys.maxsize))
        _replace(node, _call(node, aten.cat.default, parts, axis) if len(parts) > 1 else source)


def select_scatter_to_cat(graph: Graph) -> None:
    """Turn ``x[:, i] = y``, traced as ``select_scatter``, into ``cat(x[:i], y, x[i + 1:])``.

    Otherwise it becomes ScatterElements with an index as large as y.
    """
    for node in _calls(graph, aten.select_scatter.default):
        target, source, axis, index = _arguments(node)
        if not isinstance(index, int) or index < 0:
            continue
        parts = [_call(node, aten.unsqueeze.default, source, axis)]
        if index > 0:
            parts.insert(0, _call(node, aten.slice.Tensor, target, axis, 0, index))
        if not _is(target.meta["val"].shape[axis], index + 1):
            parts.append(_call(node, aten.slice.Tensor, target, axis, index + 1, sys.maxsize))
        _replace(node, _call(node, aten.cat.default, parts, axis))


def row_copies_to_lookups(graph: Graph) -> None:
    """Turn ``zeros.index_copy(1, i, a).index_copy(1, j, b)`` into ``cat([0, a, b], 1)[:, source]``.

    `source` says of every row where it comes from. It is one number a row, written in the order of
    the copies; otherwise each copy becomes a scatter with an index as large as its rows.
    """
    for last in _calls(graph, aten.index_copy.default):
        axis = _arguments(last)[1]
        if any(user.target is aten.index_copy.default for user in last.users):
            continue  # not the last of its row
        copies: list[Node] = []
        base = last
        while base.target is aten.index_copy.default and _arguments(base)[1] == axis:
            copies.insert(0, base)
            base = _arguments(base)[0]
        indices = [_arguments(copy)[2] for copy in copies]
        values = [index.meta["val"] for index in indices]
        lists = all(value.dim() == 1 and value.dtype is torch.int64 for value in values)
        if not lists or not _is_zeros(base):
            continue
        rows = [_arguments(copy)[3] for copy in copies]
        shape = list(rows[0].meta["val"].shape)
        shape[axis] = 1
        sizes = [_extent(last, rows[0], place, size) for place, size in enumerate(shape)]
        parts = [_call(last, aten.new_zeros.default, rows[0], sizes)]
        count = _extent(last, base, axis, base.meta["val"].shape[axis])
        source = _call(last, aten.new_zeros.default, indices[0], [count])
        first: Any = 1
        for index, part in zip(indices, rows, strict=True):
            parts.append(part)
            end = _sum(last, [first, _extent(last, part, axis, part.meta["val"].shape[axis])])
            numbers = _numbers(last, first, end, index)
            source = _call(last, aten.scatter.src, source, 0, index, numbers)
            first = end
        whole = _call(last, aten.cat.default, parts, axis)
        _replace(last, _call(last, aten.index_select.default, whole, axis, source))


def _is_zeros(node: Node) -> bool:
    """Whether a value is made as zeros."""
    if node.target in (aten.full.default, aten.new_full.default):
        return _arguments(node)[-1] == 0
    return node.target in (aten.zeros.default, aten.new_zeros.default)


def _extent(anchor: Node, source: Node, axis: int, size: Any) -> Any:
    """An extent of `source` as a number or, where it varies, a node."""
    return size if isinstance(size, int) else _call(anchor, aten.sym_size.int, source, axis)


def _numbers(anchor: Node, start: Any, end: Any, like: Node) -> Node:
    """The numbers from `start` to before `end`, of the dtype and device of `like`."""
    value = like.meta["val"]
    with value.fake_mode:  # a range has no input that would tell it; it would fix the bounds
        node = _call(anchor, aten.arange.start, start, end)
        kind = {"dtype": value.dtype, "device": value.device}
        node.kwargs, node.meta["val"] = kind, node.meta["val"].to(**kind)
    return node


def split_to_slices(graph: Graph) -> None:
    """Turn ``x.split([a, b], dim)`` into slices; sizes that vary would make it a sequence."""
    for node in _calls(graph, aten.split_with_sizes.default):
        source, sizes, axis = (*_arguments(node), 0)[:3]
        ends = [_sum(node, sizes[: index + 1]) for index in range(len(sizes) - 1)]
        starts, ends = [0, *ends], [*ends, sys.maxsize]
        for item in list(node.users):
            index = _arguments(item)[1]
            part = _call(node, aten.slice.Tensor, source, axis, starts[index], ends[index])
            _replace(item, part)


def rms_norms_to_products(graph: Graph) -> None:
    """Turn ``rms_norm`` into its definition, in float32 and rounded once at the end.

    On CUDA torch.onnx would turn it into a fused operator for which it has no translation.
    """
    for node in _calls(graph, aten.rms_norm.default):
        source, shape, weight, epsilon = (*_arguments(node), None, None)[:4]
        narrow = source.meta["val"].dtype
        wide = torch.promote_types(narrow, torch.float32)
        epsilon = torch.finfo(wide).eps if epsilon is None else epsilon
        values = _call(node, aten.to.dtype, source, wide)
        squares = _call(node, aten.pow.Tensor_Scalar, values, 2)
        mean = _call(node, aten.mean.dim, squares, [-1 - axis for axis in range(len(shape))], True)
        inverse = _call(node, aten.rsqrt.default, _call(node, aten.add.Tensor, mean, epsilon))
        normal = _call(node, aten.mul.Tensor, values, inverse)
        if weight is not None:
            wide_weight = _call(node, aten.to.dtype, weight, wide)
            normal = _call(node, aten.mul.Tensor, normal, wide_weight)
        _replace(node, _call(node, aten.to.dtype, normal, narrow))


def views_to_reshapes(graph: Graph) -> None:
    """Turn ``view`` into ``reshape``, which is the same Reshape in ONNX.

    A view holds for the strides of the trace; torch.onnx traces again, and there attention with a
    mask may give its output in another layout.
    """
    for node in _calls(graph, aten.view.default):
        node.target = aten.reshape.default


_REWRITES = (
    rms_norms_to_products,
    drop_whole_copies,
    drop_empty_parts,
    drop_idle_squeezes,
    whole_lookups_to_unsqueeze,
    unbind_pairs_to_slices,
    vector_unbinds_to_selects,
    lane_writes_to_stack,
    slice_scatter_to_cat,
    select_scatter_to_cat,
    row_copies_to_lookups,
    split_to_slices,
    views_to_reshapes,
)


def _sum(anchor: Node, sizes: list[Any]) -> Any:
    """Add up sizes, each a number or a node."""
    total = sizes[0]
    for size in sizes[1:]:
        known = isinstance(total, int) and isinstance(size, int)
        total = total + size if known else _call(anchor, operator.add, total, size)
    return total


def _calls(graph: Graph, target: Callable[..., Any]) -> list[Node]:
    return [n for n in graph.nodes if n.op == "call_function" and n.target is target]


def _arguments(node: Node) -> tuple[Any, ...]:
    """Positional arguments of a call; the operator's schema gives their types."""
    return node.args


def _slice_bounds(node: Node, source: Node, bounds: list[Any]) -> tuple[int, Any, Any, Any]:
    """(axis, start, end, step) of a slice or slice_scatter; ``sys.maxsize`` is the axis's end."""
    values: dict[str, Any] = dict(zip(("dim", "start", "end", "step"), bounds, strict=False))
    values.update(node.kwargs)
    axis, start, end = values.get("dim", 0), values.get("start"), values.get("end")
    size = source.meta["val"].shape[axis]
    if end is None or (isinstance(end, int) and isinstance(size, int) and end >= size):
        end = sys.maxsize
    return axis, 0 if start is None else start, end, values.get("step", 1)


def _is(bound: Any, value: int) -> bool:
    return isinstance(bound, int) and bound == value


def _is_negative(bound: Any) -> bool:
    return isinstance(bound, int) and bound < 0


def _call(anchor: Node, target: Callable[..., Any], *args: Any) -> Node:
    """Insert a call before `anchor`, as if it came from the same line of the model."""
    with anchor.graph.inserting_before(anchor):
        node = anchor.graph.call_function(target, args)
    for key in ("nn_module_stack", "stack_trace"):
        if key in anchor.meta:
            node.meta[key] = anchor.meta[key]
    values = tree_map(lambda a: a.meta["val"] if isinstance(a, Node) else a, args)
    node.meta["val"] = target(*values)  # later rewrites read it
    return node


def _replace(node: Node, new: Node) -> None:
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
