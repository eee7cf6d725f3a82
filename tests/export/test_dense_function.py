"""The dense body of the ONNX function in ONNX Runtime against torch's attention."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from rainfusion_trt.export import operator


def run(q, k, v, grid, *, kv_len=None, **attributes):
    """One node, with the function as the only explanation of it."""
    feed = {"query": q, "key": k, "value": v, "grid": grid, "sparsity": torch.tensor([0.0])}
    if kv_len is not None:
        feed["kv_len"] = kv_len
    feed = {name: tensor.numpy() for name, tensor in feed.items()}
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feed.items()
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, q.shape)
    node = helper.make_node(
        operator.OP_TYPE,
        list(feed),
        ["output"],
        domain=operator.DOMAIN,
        **operator.PLUGIN_ATTRIBUTES,
        **attributes,
    )
    function = ir.serde.serialize_function(operator.dense_function(kv_len=kv_len is not None))
    model = helper.make_model(
        helper.make_graph([node], "test", inputs, [output]),
        functions=[function],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(operator.DOMAIN, 1)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, feed)[0])


def qkv(batch=2, heads=3, tokens=45, size=16):
    generator = torch.Generator().manual_seed(0)
    shape = (3, batch, heads, tokens, size)
    return torch.randn(shape, generator=generator).unbind(0), torch.zeros(3, 3, 5)


@pytest.mark.parametrize("scale", [None, 0.0, 0.7])
def test_equals_dense_attention(scale):
    (q, k, v), grid = qkv()
    attributes = {} if scale is None else {"scale": scale}
    expected = F.scaled_dot_product_attention(q, k, v, scale=scale or None)
    torch.testing.assert_close(run(q, k, v, grid, **attributes), expected)


def test_keys_past_kv_len_are_never_attended():
    (q, k, v), grid = qkv()
    kv_len = torch.tensor([31, 45], dtype=torch.int32)
    mask = (torch.arange(45) < kv_len[:, None])[:, None, None]
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(run(q, k, v, grid, kv_len=kv_len), expected)


def test_attributes_of_the_plugin_do_not_disturb():
    (q, k, v), grid = qkv()
    actual = run(q, k, v, grid, text="first", method="rainfusion2", alpha=0.5, sink_frames=3)
    torch.testing.assert_close(actual, F.scaled_dot_product_attention(q, k, v))


def test_softmax_does_not_overflow():
    (q, k, v), grid = qkv()
    actual = run(q * 100, k * 100, v, grid)
    assert np.isfinite(actual.numpy()).all()
    torch.testing.assert_close(actual, F.scaled_dot_product_attention(q * 100, k * 100, v))
