"""No Squeeze is left in a graph, on graphs in ONNX's text form."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.export import Dim

from rainfusion_trt.export.squeezes import squeezes_to_gathers

EXTENTS = """
sizes (float[2, n, m] x) => (int64 first, int64 second, int64[1] third, int64[2] fourth)
{
  a = Shape <start: int = 1, end: int = 2> (x)
  first = Squeeze (a)
  b = Shape <start: int = -1> (x)
  c = Squeeze (b)
  second = Mul (c, first)
  third = Shape <start: int = 0, end: int = 1> (x)
  d = Shape <start: int = 1> (x)
  fourth = Squeeze (d)
}
"""
CHUNKS = """
chunks (float[2, n, 3] x) => (float[2, n] y, float[2, n] z)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}>
{
  a = Slice (x, zero, one, two, one)
  b = Slice (x, one, two, two)
  c = Slice (x, two, three, two, one)
  last = Neg (two)
  d = Squeeze (a, two)
  e = Squeeze (b, two)
  f = Squeeze (c, two)
  g = Mul (d, e)
  y = Add (g, f)
  h, i, j = Split <axis: int = -1, num_outputs: int = 3> (x)
  k = Squeeze (i, two)
  l = Squeeze (j, two)
  z = Sub (k, l)
}
"""
# A cut with one more axis to drop, from the end, backwards from beyond the end, on two axes, into
# unequal parts; axes that are not given, which may be none.
OTHERS = """
others (float[1, 3, 4, 1] x, float[2, 3] w)
  => (float[1, 4] p, float[1, 3, 1] q, float[1, 3, 1] r, float[1, 1] s, float[1, 3, 1] t,
      float[3, 4] u, float[2, 3] v)
<int64[1] one = {1}, int64[1] two = {2}, int64[1] nine = {9}, int64[1] last = {-1},
 int64[2] outer = {1, -1}, int64[2] starts = {1, 3}, int64[2] ends = {2, 4}, int64[2] axes = {1, 2},
 int64[2] parts = {3, 1}, int64[1] third = {-2}>
{
  a = Slice (x, one, two, one, one)
  p = Squeeze (a, outer)
  c = Slice (x, last, nine, two, one)
  q = Squeeze (c, third)
  d = Slice (x, nine, two, two, last)
  r = Squeeze (d, third)
  e = Slice (x, starts, ends, axes)
  s = Squeeze (e, axes)
  f, g = Split <axis: int = 2> (x, parts)
  t = Squeeze (g, two)
  u = Squeeze (x)
  v = Squeeze (w)
}
"""


RUN_TIME = """
late (float[2, n, 1] x, int64[1] axes) => (float[2, n] y)
{
  y = Squeeze (x, axes)
}
"""


def rewritten(text: str, *, shapes: bool = True) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The graph before, maybe with the shapes of its values, and after."""
    before = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]>{text}')
    if shapes:
        before = onnx.shape_inference.infer_shapes(before)
    model = ir.serde.deserialize_model(before)
    squeezes_to_gathers(model)
    after = ir.serde.serialize_model(model)
    onnx.checker.check_model(after, full_check=True)
    return before, after


def check_equal(before: onnx.ModelProto, after: onnx.ModelProto, **feed: np.ndarray) -> None:
    for got, wanted in zip(
        *(ReferenceEvaluator(m).run(None, feed) for m in (after, before)), strict=True
    ):
        assert got.shape == wanted.shape and np.array_equal(got, wanted)


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 1, 3)])
def test_extents_are_gathered(shape):
    before, after = rewritten(EXTENTS)
    assert kinds(after).count("Gather") == 2 and "Squeeze" not in kinds(after)
    check_equal(before, after, x=numbers(*shape))


def test_chunks_are_gathered_from_what_was_cut():
    before, after = rewritten(CHUNKS)
    assert not {"Squeeze", "Slice", "Split"} & set(kinds(after))
    assert kinds(after).count("Gather") == 5
    assert all(tensor.name.startswith("axis_") for tensor in after.graph.initializer)
    check_equal(before, after, x=numbers(2, 5, 3))


def test_other_squeezes():
    before, after = rewritten(OTHERS)
    assert "Squeeze" not in kinds(after)
    check_equal(before, after, x=numbers(1, 3, 4, 1), w=numbers(2, 3))


def test_axes_of_unknown_shapes():
    """Inside of a translation torch.onnx knows few shapes; axes from 0 on need none."""
    before, after = rewritten(CHUNKS, shapes=False)
    assert "Squeeze" not in kinds(after)
    check_equal(before, after, x=numbers(2, 5, 3))


def test_axes_of_the_run_stay():
    _, after = rewritten(RUN_TIME)
    assert kinds(after) == ["Squeeze"]


class Rows(nn.Module):
    """What models do of which torch.onnx makes a Squeeze."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # [B, S, 3, 4]
        shift, scale, gate = x.chunk(3, dim=2)  # as Wan's modulation of every token
        a, b, c = x.unbind(2)  # as LTX-2's
        one, two, three, four = x[..., None].unbind(-2)
        midpoint = ((x[:, :, 0] + b) / 2.0)[..., None].squeeze(-1)  # as LTX-2's coordinates
        chunks = shift.squeeze(2) * scale.squeeze(2) + gate.squeeze(2)
        return chunks, a - b * c, one - two.squeeze(-1)[..., None] * three + four, midpoint


def test_what_torch_makes_of_modules():
    x = torch.randn(2, 5, 3, 4)
    shapes = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}
    module = Rows().eval()
    program = torch.onnx.export(module, (x,), dynamo=True, optimize=False, dynamic_shapes=shapes)
    assert program is not None
    assert any(node.op_type == "Squeeze" for node in program.model.graph)
    squeezes_to_gathers(program.model)
    model = ir.serde.serialize_model(program.model)
    assert "Squeeze" not in kinds(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = torch.randn(3, 7, 3, 4)
    outputs = session.run(None, {"x": x.numpy()})
    for actual, expected in zip(outputs, module(x), strict=True):
        assert torch.equal(torch.from_numpy(actual), expected)
