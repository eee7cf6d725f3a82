"""Takes every Squeeze out of a graph: not every TensorRT takes one."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes


def squeezes_to_gathers(model: ir.Model) -> None:
    """Write each Squeeze as ``Gather(x, index)``, which drops the axis as well, in place.

    TensorRT for RTX 1.6, with the parser of 1.7, refuses every Squeeze, whatever its input. Where
    the axis was cut to one row before, by a Slice or Split as ``chunk`` and ``unbind`` make them,
    the row is gathered from what was cut. The extent of one axis,
    ``Squeeze(Shape(x, start=i, end=i + 1))``, becomes ``Gather(Shape(x), i)``. A Squeeze whose axes
    are known at run time only stays; :func:`rainfusion_trt.export.check_model` refuses it.
    """
    graph = model.graph
    has_cuts = False
    for node in list(graph):
        if (node.domain, node.op_type) != ("", "Squeeze"):
            continue
        new = _extent(graph, node)
        if new is None:
            new = _rows(graph, node)
            has_cuts = has_cuts or new is not None
        if new is not None:
            _replace(graph, node, new)
    if has_cuts:
        passes.RemoveUnusedNodesPass()(model)


def _replace(graph: ir.Graph, node: ir.Node, new: list[ir.Node]) -> None:
    """Put `new` in the node's place; the last one's output takes its name."""
    graph.insert_before(node, new)
    old, value = node.outputs[0], new[-1].outputs[0]
    name, old.name = old.name, None
    value.name = name
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _extent(graph: ir.Graph, node: ir.Node) -> list[ir.Node] | None:
    """The nodes for the extent of one axis as a scalar; None if `node` is something else."""
    squeezed = node.inputs[0]
    shape = squeezed.producer() if squeezed is not None else None
    source = shape.inputs[0] if shape is not None and shape.op_type == "Shape" else None
    if shape is None or source is None or source.shape is None:
        return None
    rank = len(source.shape)
    start, end = shape.attributes.get("start"), shape.attributes.get("end")
    extents = range(rank)[
        None if start is None else start.as_int() : None if end is None else end.as_int()
    ]
    if len(extents) != 1:
        return None
    whole = ir.Node("", "Shape", [source])
    gather = ir.Node("", "Gather", [whole.outputs[0], _index(graph, extents[0])])
    for new, sizes in ((whole, [rank]), (gather, [])):
        new.outputs[0].dtype = ir.DataType.INT64
        new.outputs[0].shape = ir.Shape(sizes)
    return [whole, gather]


def _rows(graph: ir.Graph, node: ir.Node) -> list[ir.Node] | None:
    """The nodes that drop the axes of `node` one by one; None if the axes are not known."""
    value, axes = node.inputs[0], _axes(node)
    if value is None or axes is None:
        return None
    nodes: list[ir.Node] = []
    for axis in reversed(axes):  # from the last one, as the axes before it keep their numbers
        source, row = (value, 0) if nodes else _cut(value, axis)
        index = _index(graph, row)
        nodes.append(ir.Node("", "Gather", [source, index], [ir.AttrInt64("axis", axis)]))
        if value.shape is not None:
            sizes = [size for place, size in enumerate(value.shape) if place != axis]
            nodes[-1].outputs[0].shape = ir.Shape(sizes)
        value = nodes[-1].outputs[0]
    if not nodes:  # nothing to drop
        nodes.append(ir.Node("", "Identity", [value]))
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.shape = old.shape if new.shape is None else new.shape
    for each in nodes:
        each.outputs[0].type = old.type
        each.metadata_props.update(node.metadata_props)
    return nodes


def _axes(node: ir.Node) -> list[int] | None:
    """The axes that a Squeeze drops, counted from the first and in order."""
    before, after = node.inputs[0], node.outputs[0].shape
    shape = None if before is None else before.shape
    if len(node.inputs) > 1:
        axes = _numbers(node.inputs[1])
        if axes is None or min(axes, default=0) >= 0:
            return None if axes is None else sorted(axes)
        if shape is not None:
            return sorted(axis % len(shape) for axis in axes)
        return None if after is None else sorted(axis % (len(after) + len(axes)) for axis in axes)
    if shape is None or not shape.is_static():
        return None
    return [axis for axis, size in enumerate(shape) if size == 1]


def _cut(value: ir.Value, axis: int) -> tuple[ir.Value, int]:
    """What `value` is the one row of on `axis`, and the row's number: maybe itself and 0."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.inputs else None
    if node is None or source is None or node.domain != "":
        return value, 0
    if node.op_type == "Slice":
        starts, _, axes, steps = (_numbers(given) for given in (*node.inputs[1:], None, None)[:4])
        forward = len(node.inputs) < 5 or (steps is not None and steps[0] > 0)
        if starts and starts[0] >= 0 and forward and axes is not None:
            return (source, starts[0]) if _are(axes, axis, value) else (value, 0)
    if node.op_type == "Split":
        along = node.attributes.get("axis")
        row = node.outputs.index(value)
        shapes = [output.shape for output in node.outputs[:row]]
        single = all(shape is not None and shape[axis] == 1 for shape in shapes)
        if single and _are([0 if along is None else along.as_int()], axis, value):
            return source, row
    return value, 0


def _are(axes: list[int], axis: int, value: ir.Value) -> bool:
    """Whether `axes` of `value` are the one `axis`, a number from 0 on."""
    rank = None if value.shape is None else len(value.shape)
    return axes == [axis] or (rank is not None and axes == [axis - rank])


def _numbers(value: ir.Value | None) -> list[int] | None:
    """The numbers of a constant list; None if they are not known or not given."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]


def _index(graph: ir.Graph, index: int) -> ir.Value:
    name = f"axis_{index}"
    if name not in graph.initializers:
        tensor = ir.tensor(index, dtype=ir.DataType.INT64, name=name)
        graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return graph.initializers[name]
