"""Extents of dynamic shapes in the form that every TensorRT takes."""

from __future__ import annotations

import onnx_ir as ir


def gather_extents(model: ir.Model) -> None:
    """``Squeeze(Shape(x, start=i, end=i + 1))`` becomes ``Gather(Shape(x), i)``, in place.

    TensorRT for RTX 1.6 refuses the first, whose input is a shape.
    """
    graph = model.graph
    for node in list(graph):
        index = _single_extent(node)
        if index is None:
            continue
        source, scalar = node.inputs[0].producer().inputs[0], node.outputs[0]
        shape = ir.Node("", "Shape", [source])
        gather = ir.Node("", "Gather", [shape.outputs[0], _constant(graph, index)])
        for new, extents in ((shape, [len(source.shape)]), (gather, [])):
            new.outputs[0].dtype = ir.DataType.INT64
            new.outputs[0].shape = ir.Shape(extents)
        graph.insert_before(node, [shape, gather])
        name, scalar.name = scalar.name, None
        gather.outputs[0].name = name
        ir.convenience.replace_all_uses_with(scalar, gather.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _single_extent(node: ir.Node) -> int | None:
    """The axis whose extent a Squeeze gives as a scalar."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    shape = node.inputs[0].producer() if node.op_type == "Squeeze" else None
    if shape is None or shape.op_type != "Shape" or axes is not None:
        return None
    start, end = shape.attributes.get("start"), shape.attributes.get("end")
    first = 0 if start is None else start.as_int()
    return first if end is not None and end.as_int() == first + 1 else None


def _constant(graph: ir.Graph, index: int) -> ir.Value:
    name = f"axis_{index}"
    if name not in graph.initializers:
        tensor = ir.tensor(index, dtype=ir.DataType.INT64, name=name)
        graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return graph.initializers[name]
