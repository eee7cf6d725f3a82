"""The operator's backward: dense at sparsity 0, through the chosen keys above it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import rainfusion_trt
from rainfusion_trt.operator import reference

GRID = (4, 8, 8)


def leaves(dtype=torch.float64, tokens=300):
    torch.manual_seed(0)
    return [torch.randn(2, 2, tokens, 16, dtype=dtype, requires_grad=True) for _ in range(3)]


def gradients(output, inputs):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_dense_gradient_is_that_of_dense_attention(scale):
    q, k, v = leaves()
    output = rainfusion_trt.rainfusion_attention(
        q, k, v, GRID, text="last", sparsity=0.0, scale=scale
    )
    expected = F.scaled_dot_product_attention(q, k, v, scale=scale)
    for actual, right in zip(
        gradients(output, (q, k, v)), gradients(expected, (q, k, v)), strict=True
    ):
        torch.testing.assert_close(actual, right)


def test_padding_has_no_gradient():
    q, k, v = leaves()
    kv_len = torch.tensor([270, 300], dtype=torch.int32)
    output = rainfusion_trt.rainfusion_attention(
        q, k, v, GRID, text="last", sparsity=0.0, kv_len=kv_len
    )
    mask = (torch.arange(300) < kv_len[:, None])[:, None, None]
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    real = (output[0, :, :270].sum() + output[1].sum(), expected[0, :, :270].sum())
    actual = torch.autograd.grad(real[0], (q, k, v))
    right = torch.autograd.grad(real[1] + expected[1].sum(), (q, k, v))
    for a, b in zip(actual, right, strict=True):
        torch.testing.assert_close(a, b)
    assert (actual[1][0, :, 270:] == 0).all()


@pytest.mark.parametrize(("method", "grid"), [("rainfusion", GRID), ("piecewise", (9, 8, 8))])
def test_sparse_gradient_is_the_references(method, grid):
    q, k, v = leaves(tokens=math.prod(grid) + 44)
    arguments = {"text": "last", "sparsity": 0.7, "method": method}
    output = rainfusion_trt.rainfusion_attention(q, k, v, grid, **arguments)
    expected = reference.rainfusion_attention(q, k, v, grid, **arguments)
    actual, right = gradients(output, (q, k, v)), gradients(expected, (q, k, v))
    for a, b in zip(actual, right, strict=True):
        torch.testing.assert_close(a, b)
    dense = gradients(F.scaled_dot_product_attention(q, k, v), (q, k, v))
    assert (actual[0] - dense[0]).abs().max() > 1e-3


def test_a_compiled_training_step_has_it():
    q, k, v = leaves(torch.float32)

    def step(q, k, v, sparsity):
        output = rainfusion_trt.rainfusion_attention(
            q.sin(), k, v, GRID, text="last", sparsity=sparsity
        )
        return output.square().sum()

    sparsity = torch.zeros(1)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(q, k, v, sparsity), (q, k, v))
    right = torch.autograd.grad(step(q, k, v, sparsity), (q, k, v))
    for a, b in zip(actual, right, strict=True):
        torch.testing.assert_close(a, b)
