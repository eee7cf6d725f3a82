"""Rewrites of the traced graph into patterns that TensorRT's parser and optimizer handle well.

Each function changes the FX graph of an ExportedProgram in place, after ``run_decompositions({})``.
Values stay the same to the last bit; only `rms_norms_to_products` may sum in another order.
"""

from __future__ import annotations

import sys

import torch
from torch.export import ExportedProgram
from torch.fx import Graph
from torch.fx.experimental.symbolic_shapes import statically_known_true

from rainfusion_trt.export.partial_writes import (
    lane_writes_to_stack,
    row_copies_to_lookups,
    select_scatter_to_cat,
    slice_scatter_to_cat,
)
from rainfusion_trt.export.traced_nodes import (
    add_up,
    arguments,
    call,
    calls,
    is_number,
    replace,
    slice_bounds,
)

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
    for node in calls(graph, aten.slice.Tensor):
        source, *bounds = arguments(node)
        _, start, end, step = slice_bounds(node, source, bounds)
        if is_number(start, 0) and is_number(end, sys.maxsize) and step == 1:
            replace(node, source)
    for node in calls(graph, aten.copy.default):
        target, source = arguments(node)[:2]
        old, new = target.meta["val"], source.meta["val"]
        if old.shape == new.shape:
            same = old.dtype == new.dtype
            replace(node, source if same else call(node, aten.to.dtype, source, old.dtype))


def drop_empty_parts(graph: Graph) -> None:
    """Drop the parts of a ``cat`` that have no elements on its axis."""
    for node in calls(graph, aten.cat.default):
        parts, axis = (*arguments(node), 0)[:2]
        full = [part for part in parts if not is_number(part.meta["val"].shape[axis], 0)]
        if 0 < len(full) < len(parts):
            replace(node, call(node, aten.cat.default, full, axis) if len(full) > 1 else full[0])


def drop_idle_squeezes(graph: Graph) -> None:
    """Drop ``x.squeeze(1)`` where that axis is longer than 1; ONNX Squeeze must not do that."""
    for node in calls(graph, aten.squeeze.dim):
        source = arguments(node)[0]
        if node.meta["val"].dim() == source.meta["val"].dim():
            replace(node, source)


def whole_lookups_to_unsqueeze(graph: Graph) -> None:
    """Replace ``embedding(arange(len(table))[None], table)`` by ``table[None]``."""
    for node in calls(graph, aten.embedding.default):
        table, rows = arguments(node)[:2]
        if rows.target is not aten.unsqueeze.default or rows.args[1] != 0:
            continue
        count = rows.args[0]
        if count.target is aten.arange.default and statically_known_true(
            count.meta["val"].shape[0] == table.meta["val"].shape[0]
        ):
            replace(node, call(node, aten.unsqueeze.default, table, 0))


def unbind_pairs_to_slices(graph: Graph) -> None:
    """Turn ``x.view(..., D // 2, 2).unbind(-1)`` into ``x[..., 0::2], x[..., 1::2]``.

    Otherwise it becomes Split and Squeeze, and each lane a Gather (`squeezes_to_gathers`), which
    reads single elements.
    """
    for node in calls(graph, aten.unbind.int):
        view, axis = (*arguments(node), 0)[:2]
        if view.target not in (aten.view.default, aten.reshape.default):
            continue
        pairs, source = view.meta["val"], view.args[0]
        last = source.meta["val"].dim() - 1
        if axis not in (-1, last + 1) or pairs.dim() != last + 2 or pairs.shape[-1] != 2:
            continue
        for item in list(node.users):
            lane = arguments(item)[1]
            lanes = call(node, aten.slice.Tensor, source, last, lane, sys.maxsize, 2)
            replace(item, lanes)


def vector_unbinds_to_selects(graph: Graph) -> None:
    """Turn ``x.unbind()`` of a vector into ``x[0], x[1], ...``, without a Split."""
    for node in calls(graph, aten.unbind.int):
        source = arguments(node)[0]
        if source.meta["val"].dim() != 1:
            continue
        for item in list(node.users):
            replace(item, call(node, aten.select.int, source, 0, arguments(item)[1]))


def split_to_slices(graph: Graph) -> None:
    """Turn ``x.split([a, b], dim)`` into slices; sizes that vary would make it a sequence."""
    for node in calls(graph, aten.split_with_sizes.default):
        source, sizes, axis = (*arguments(node), 0)[:3]
        ends = [add_up(node, sizes[: index + 1]) for index in range(len(sizes) - 1)]
        starts, ends = [0, *ends], [*ends, sys.maxsize]
        for item in list(node.users):
            index = arguments(item)[1]
            part = call(node, aten.slice.Tensor, source, axis, starts[index], ends[index])
            replace(item, part)


def rms_norms_to_products(graph: Graph) -> None:
    """Turn ``rms_norm`` into its definition, in float32 and rounded once at the end.

    On CUDA torch.onnx would turn it into a fused operator for which it has no translation.
    """
    for node in calls(graph, aten.rms_norm.default):
        source, shape, weight, epsilon = (*arguments(node), None, None)[:4]
        narrow = source.meta["val"].dtype
        wide = torch.promote_types(narrow, torch.float32)
        epsilon = torch.finfo(wide).eps if epsilon is None else epsilon
        values = call(node, aten.to.dtype, source, wide)
        squares = call(node, aten.pow.Tensor_Scalar, values, 2)
        mean = call(node, aten.mean.dim, squares, [-1 - axis for axis in range(len(shape))], True)
        inverse = call(node, aten.rsqrt.default, call(node, aten.add.Tensor, mean, epsilon))
        normal = call(node, aten.mul.Tensor, values, inverse)
        if weight is not None:
            wide_weight = call(node, aten.to.dtype, weight, wide)
            normal = call(node, aten.mul.Tensor, normal, wide_weight)
        replace(node, call(node, aten.to.dtype, normal, narrow))


def views_to_reshapes(graph: Graph) -> None:
    """Turn ``view`` into ``reshape``, which is the same Reshape in ONNX.

    A view holds for the strides of the trace; torch.onnx traces again, and there attention with a
    mask may give its output in another layout.
    """
    for node in calls(graph, aten.view.default):
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
