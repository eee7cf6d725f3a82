"""Scalars made of single extents, on a graph in ONNX's text form."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from rainfusion_trt.export.finish import gather_extents

TEXT = """
<ir_version: 9, opset_import: ["" : 20]>
sizes (float[2, n, m] x) => (int64 first, int64 second, int64[1] third, int64[2] fourth)
{
  a = Shape <start: int = 1, end: int = 2> (x)
  first = Squeeze (a)
  b = Shape <start: int = 2, end: int = 3> (x)
  c = Squeeze (b)
  second = Mul (c, first)
  third = Shape <start: int = 0, end: int = 1> (x)
  d = Shape <start: int = 1> (x)
  fourth = Squeeze (d)
}
"""


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 1, 3)])
def test_the_same_numbers_by_gather(shape):
    before = onnx.parser.parse_model(TEXT)
    model = ir.serde.deserialize_model(before)
    gather_extents(model)
    after = ir.serde.serialize_model(model)
    onnx.checker.check_model(after, full_check=True)
    kinds = [node.op_type for node in after.graph.node]
    assert kinds.count("Gather") == 2 and kinds.count("Squeeze") == 1
    feed = {"x": np.zeros(shape, np.float32)}
    for got, wanted in zip(
        *(ReferenceEvaluator(m).run(None, feed) for m in (after, before)), strict=True
    ):
        assert got.shape == wanted.shape and np.array_equal(got, wanted)
